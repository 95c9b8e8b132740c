// Sounds as inputs of the model: a .wav of 16 bits, cut or filled to the model's length as manifest.json says.

import Foundation

private let pcmPeak = 32768.0

/// Where a .wav has its samples.
private struct Wav {
    let bytes: [UInt8]
    var rate = 0
    var channels = 1
    var start = 0
    var count = 0

    init(_ file: Data) throws {
        bytes = [UInt8](file)
        var bits = 16
        var data: Range<Int>?
        var at = 12
        while at + 8 <= bytes.count {
            let start = at + 8
            let size = number(at + 4, bytes: 4)
            switch String(decoding: bytes[at..<at + 4], as: UTF8.self) {
            case "fmt " where start + 16 <= bytes.count:
                channels = number(start + 2, bytes: 2)
                rate = number(start + 4, bytes: 4)
                bits = number(start + 14, bytes: 2)
            case "data":
                data = start..<min(start + size, bytes.count)
            default:
                break
            }
            at = start + size + size % 2
        }
        guard let data = data, bits == 16, channels >= 1 else { throw SampleError("Give a .wav of 16 bits.") }
        start = data.lowerBound
        count = data.count / 2 / channels
    }

    private func number(_ at: Int, bytes size: Int) -> Int {
        bytes[at..<at + size].reversed().reduce(0) { $0 << 8 | Int($1) } // little-endian
    }

    /// Returns the mean of the channels of one sample, of 16 bits.
    func sample(_ index: Int) -> Double {
        let first = start + 2 * index * channels
        var sum = 0
        for channel in 0..<channels { sum += Int(Int16(truncatingIfNeeded: number(first + 2 * channel, bytes: 2))) }
        return Double(sum) / Double(channels)
    }
}

/// Returns a .wav of 16 bits as a batch of one sample, with as many dimensions as the model's input.
func prepareSound(_ file: Data, _ how: SoundPreprocessing, dtype: String, dimensions: Int) throws -> Values {
    let wav = try Wav(file)
    guard wav.rate == how.sampleRate else {
        throw SampleError("The sound has \(wav.rate) samples a second; resample it to \(how.sampleRate) first.")
    }
    let length = how.samples ?? wav.count
    let start = how.align == .middle ? max(0, wav.count - length) / 2 : 0
    let before = how.align == .middle ? max(0, length - wav.count) / 2 : 0
    var numbers = [Double](repeating: 0, count: length)
    for i in 0..<min(length, wav.count) {
        numbers[before + i] = wav.sample(start + i) / pcmPeak * how.peak
    }
    let shape = [Int](repeating: 1, count: max(0, dimensions - 1)) + [length]
    return try Values(dtype: dtype, shape: shape, numbers: numbers)
}
