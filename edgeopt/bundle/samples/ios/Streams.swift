// Models that take a sound in chunks: how it is cut, and the states that go from one chunk to the next.

import Foundation

extension SoundPreprocessing {
    /// How a sound is prepared that is to be cut into chunks: as a whole.
    fileprivate var asWhole: SoundPreprocessing {
        SoundPreprocessing(sampleRate: sampleRate, samples: nil, align: align, peak: peak)
    }
}

/// Returns a state before the first chunk: zeros, for a batch of one if any batch goes.
func firstState(_ state: TensorInfo) throws -> Values {
    let name = state.name
    guard state.beginsWithZeros == true else {
        throw SampleError(
            "The state '\(name)' does not begin with zeros: give its first value to session.run yourself."
        )
    }
    let shape = try state.shape.map { dimension -> Int in
        guard let size = dimension.size ?? (dimension.isBatch ? 1 : nil) else {
            throw SampleError("The state '\(name)' has no fixed size: give its first value to session.run yourself.")
        }
        return size
    }
    return try Values(dtype: state.dtype, shape: shape, numbers: [Double](repeating: 0, count: shape.reduce(1, *)))
}

/// Returns a sound as chunks of the model's length, the last one filled with zeros.
func cutSound(_ file: Data, _ how: SoundPreprocessing, for tensor: TensorInfo) throws -> [Values] {
    let name = tensor.name
    guard let length = how.samples else {
        throw SampleError(
            "manifest.json has no chunk length for '\(name)' (samples is null): set it in the task, and build again."
        )
    }
    let whole = try prepareSound(file, how.asWhole, dtype: tensor.dtype, dimensions: tensor.shape.count)
    let numbers = try whole.numbers()
    let shape = Array(whole.shape.dropLast()) + [length]
    return try stride(from: 0, to: max(1, numbers.count), by: length).map { start -> Values in
        let part = Array(numbers[start..<min(start + length, numbers.count)])
        let filled = part + [Double](repeating: 0, count: length - part.count)
        return try Values(dtype: tensor.dtype, shape: shape, numbers: filled)
    }
}
