#include "array.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <type_traits>

namespace {

/** A float16, which C++17 does not have. */
struct Half {
  std::uint16_t bits;
};

double doubleOf(Half half) {
  const int exponent = half.bits >> 10 & 31, fraction = half.bits & 1023;
  const double sign = half.bits >> 15 ? -1 : 1;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24));
}

/** Returns the nearest float16; of two that are as near, the even one. */
Half halfOf(double value) {
  const int sign = std::signbit(value) ? 0x8000 : 0;
  const double size = std::fabs(value);
  int bits = 0;
  if (std::isnan(value)) {
    bits = 0x7e00;
  } else if (size >= 65520) {  // would be rounded to 65536
    bits = 0x7c00;
  } else if (size > 0) {
    int exponent;
    std::frexp(size, &exponent);
    const int step = std::max(exponent - 11, -24);  // values of float16 are 2^step apart here
    bits = (step + 24) * 1024 + static_cast<int>(std::nearbyint(std::ldexp(size, -step)));
  }
  return {static_cast<std::uint16_t>(sign | bits)};
}

template <class T>
double readValue(const unsigned char* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  if constexpr (std::is_same_v<T, Half>) return doubleOf(value);
  else return static_cast<double>(value);
}

template <class T>
void writeValue(unsigned char* to, double value) {
  T stored;
  if constexpr (std::is_same_v<T, Half>) stored = halfOf(value);
  else stored = static_cast<T>(value);
  std::memcpy(to, &stored, sizeof stored);
}

template <class T>
constexpr ElementType makeType(const char* name, ONNXTensorElementDataType code) {
  return {name, code, sizeof(T), readValue<T>, writeValue<T>};
}

const ElementType TYPES[] = {
    makeType<float>("float32", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT),
    makeType<double>("float64", ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE),
    makeType<Half>("float16", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16),
    makeType<std::uint8_t>("uint8", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8),
    makeType<std::int8_t>("int8", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8),
    makeType<std::uint8_t>("bool", ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL),
    makeType<std::int32_t>("int32", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32),
    makeType<std::uint32_t>("uint32", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32),
    makeType<std::int64_t>("int64", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64),
    makeType<std::uint64_t>("uint64", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64),
    makeType<std::uint16_t>("uint16", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16),
    makeType<std::int16_t>("int16", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16),
};

}  // namespace

const ElementType& typeNamed(const std::string& name) {
  for (const ElementType& type : TYPES)
    if (name == type.name) return type;
  throw std::runtime_error("This program has no arrays of " + name + ".");
}

const ElementType& typeOf(ONNXTensorElementDataType code) {
  for (const ElementType& type : TYPES)
    if (code == type.code) return type;
  throw std::runtime_error("This program has no arrays of ONNX's type " + std::to_string(code) + ".");
}

Array makeArray(const ElementType& type, std::vector<std::int64_t> shape) {
  std::size_t size = type.size;
  for (const std::int64_t side : shape) size *= static_cast<std::size_t>(side);
  return {&type, std::move(shape), Bytes(size)};
}
