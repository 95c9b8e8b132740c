// Arrays of the types of the manifest: their bytes, whose values are read and written as doubles.
#pragma once

#include "files.hpp"

#include <onnxruntime_cxx_api.h>

/** A type of arrays: numpy's name for it, ONNX Runtime's, the bytes of one value, and how it is read and written. */
struct ElementType {
  const char* name;
  ONNXTensorElementDataType code;
  std::size_t size;
  double (*read)(const unsigned char* from);
  void (*write)(unsigned char* to, double value);
};

const ElementType& typeNamed(const std::string& name);
const ElementType& typeOf(ONNXTensorElementDataType code);

struct Array {
  const ElementType* type;
  std::vector<std::int64_t> shape;
  Bytes bytes;  // little-endian, in C order

  std::size_t size() const { return bytes.size() / type->size; }
  double operator[](std::size_t index) const { return type->read(bytes.data() + index * type->size); }
  void set(std::size_t index, double value) { type->write(bytes.data() + index * type->size, value); }
};

/** Returns an array of zeros. */
Array makeArray(const ElementType& type, std::vector<std::int64_t> shape);
