// Models that take a sound in chunks: how it is cut, and the states that go from one chunk to the next.
#pragma once

#include "array.hpp"

#include <nlohmann/json.hpp>

/** Returns a file as the inputs of a model with states: a sound in chunks, the last one filled with zeros. */
std::vector<Array> makeChunks(const Bytes& file, const nlohmann::json& tensor);

/** Returns a state before the first chunk: zeros, for a batch of one if any batch goes. */
Array firstState(const nlohmann::json& state);

/** Tells whether an output is the next value of a state. */
bool isNextState(const nlohmann::json& manifest, const std::string& output);
