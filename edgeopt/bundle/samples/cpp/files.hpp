// Reading files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

using Bytes = std::vector<unsigned char>;

/** Returns the folder with manifest.json: the nearest one above the program, or above the current folder. */
std::filesystem::path findBundle(const std::string& program);

/** Returns the content of a file. */
Bytes readFile(const std::filesystem::path& path);

enum class Endian { little, big };

/** Returns the whole number that `count` bytes are; bytes after the end of the file are zeros. */
std::uint32_t readNumber(const Bytes& bytes, std::uint64_t at, int count, Endian endian);

/** Tells whether a text stands at a place of a file. */
bool hasText(const Bytes& bytes, std::uint64_t at, const std::string& text);
