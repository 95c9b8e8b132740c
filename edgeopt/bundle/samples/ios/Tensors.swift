// Arrays of the manifest's types: as bytes, as numbers, and as values of ONNX Runtime.

import Foundation
import OnnxRuntimeBindings

/// An array of one of the manifest's types, as little-endian bytes in C order.
struct Values {
    let dtype: String
    let shape: [Int]
    let bytes: Data

    init(dtype: String, shape: [Int], bytes: Data) {
        self.dtype = dtype
        self.shape = shape
        self.bytes = bytes
    }

    /// Makes an array of numbers, which are rounded to what the type holds.
    init(dtype: String, shape: [Int], numbers: [Double]) throws {
        self.init(dtype: dtype, shape: shape, bytes: try encode(numbers, as: dtype))
    }

    func numbers() throws -> [Double] {
        try decode(bytes, as: dtype)
    }

    /// Returns the numbers of one sample of an output of shape (samples, classes); none if there is no such sample.
    func sample(_ index: Int) throws -> [Double] {
        let classes = shape.count == 2 ? shape[1] : 0
        return Array(try numbers().dropFirst(index * classes).prefix(classes))
    }
}

private func decode(_ bytes: Data, as dtype: String) throws -> [Double] {
    switch dtype {
    case "float32": return elements(of: bytes, as: Float.self).map { Double($0) }
    case "int64": return elements(of: bytes, as: Int64.self).map { Double($0) }
    case "int32": return elements(of: bytes, as: Int32.self).map { Double($0) }
    case "int8": return elements(of: bytes, as: Int8.self).map { Double($0) }
    case "uint64": return elements(of: bytes, as: UInt64.self).map { Double($0) }
    case "uint32": return elements(of: bytes, as: UInt32.self).map { Double($0) }
    case "uint8": return elements(of: bytes, as: UInt8.self).map { Double($0) }
    default: throw SampleError("This sample has no arrays of \(dtype).")
    }
}

private func elements<Element>(of bytes: Data, as type: Element.Type) -> [Element] {
    let size = MemoryLayout<Element>.stride
    return [Element](unsafeUninitializedCapacity: bytes.count / size) { buffer, count in
        count = bytes.copyBytes(to: buffer) / size
    }
}

private func encode(_ numbers: [Double], as dtype: String) throws -> Data {
    switch dtype {
    case "float32": return numbers.map { Float($0) }.withUnsafeBytes { Data($0) }
    case "int64": return encode(numbers, as: Int64.self)
    case "int32": return encode(numbers, as: Int32.self)
    case "int8": return encode(numbers, as: Int8.self)
    case "uint64": return encode(numbers, as: UInt64.self)
    case "uint32": return encode(numbers, as: UInt32.self)
    case "uint8": return encode(numbers, as: UInt8.self)
    default: throw SampleError("This sample has no arrays of \(dtype).")
    }
}

private func encode<Element: FixedWidthInteger>(_ numbers: [Double], as type: Element.Type) -> Data {
    let elements = numbers.map { Element(truncatingIfNeeded: Int64($0.rounded(.toNearestOrEven))) }
    return elements.withUnsafeBytes { Data($0) }
}

/// Returns ONNX Runtime's name of an input's or an output's type; in Swift it has no float16, float64 and bool.
@discardableResult
func elementType(of tensor: TensorInfo) throws -> ORTTensorElementDataType {
    switch tensor.dtype {
    case "float32": return .float
    case "int64": return .int64
    case "int32": return .int32
    case "int8": return .int8
    case "uint64": return .uInt64
    case "uint32": return .uInt32
    case "uint8": return .uInt8
    default: throw SampleError("ONNX Runtime has no tensors of \(tensor.dtype) in Swift, and '\(tensor.name)' is one.")
    }
}

/// Returns an array as an input of the model.
func makeTensor(_ values: Values, for tensor: TensorInfo) throws -> ORTValue {
    try ORTValue(
        tensorData: NSMutableData(data: values.bytes),
        elementType: elementType(of: tensor),
        shape: values.shape.map { NSNumber(value: $0) }
    )
}

/// Returns an output of the model.
func readTensor(_ value: ORTValue, of tensor: TensorInfo) throws -> Values {
    let shape = try value.tensorTypeAndShapeInfo().shape.map { $0.intValue }
    let bytes = try withExtendedLifetime(value) { () -> Data in
        let data = try value.tensorData() // in the value's own memory
        return Data(bytes: data.bytes, count: data.length)
    }
    return Values(dtype: tensor.dtype, shape: shape, bytes: bytes)
}
