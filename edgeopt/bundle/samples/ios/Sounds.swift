// Sounds as inputs of the model: a .wav of 16 bits, resampled, and cut or filled to the model's length as manifest.json
// says.

import Foundation

private let pcmPeak = 32768.0
private let zeroCrossings = 16.0 // of the filter that resamples, on each side

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
        guard let data = data, bits == 16, channels >= 1, rate >= 1 else {
            throw SampleError("Give a .wav of 16 bits.")
        }
        start = data.lowerBound
        count = data.count / 2 / channels
    }

    private func number(_ at: Int, bytes size: Int) -> Int {
        bytes[at..<at + size].reversed().reduce(0) { $0 << 8 | Int($1) } // little-endian
    }

    /// Returns the mean of the channels of one sample, in -1 to 1.
    func sample(_ index: Int) -> Double {
        let first = start + 2 * index * channels
        var sum = 0
        for channel in 0..<channels { sum += Int(Int16(truncatingIfNeeded: number(first + 2 * channel, bytes: 2))) }
        return Double(sum) / Double(channels) / pcmPeak
    }

    /// Returns one sample after resampling, without the frequencies that `wanted` samples a second cannot hold.
    func sample(_ index: Int, resampledTo wanted: Int) -> Double {
        if rate == wanted { return sample(index) }
        let kept = min(1, Double(wanted) / Double(rate)) // of the frequencies
        let reach = Int((zeroCrossings / kept).rounded(.up)) // old samples on each side of a new one
        let nearest = index * rate / wanted
        let rest = Double(index * rate % wanted) / Double(wanted)
        var sum = 0.0
        var weights = 0.0
        for step in (1 - reach)...reach {
            let apart = (Double(step) - rest) * kept
            let turn = cos(Double.pi / 2 * min(1, abs(apart) / zeroCrossings))
            let weight = turn * turn * (apart == 0 ? 1 : sin(Double.pi * apart) / (Double.pi * apart))
            if (0..<count).contains(nearest + step) { sum += weight * sample(nearest + step) }
            weights += weight
        }
        return sum / weights
    }

    /// Returns the number of samples after resampling.
    func count(resampledTo wanted: Int) -> Int {
        rate == wanted ? count : (count * wanted + rate - 1) / rate
    }
}

/// Returns a .wav of 16 bits as a batch of one sample, with as many dimensions as the model's input.
func prepareSound(_ file: Data, _ how: SoundPreprocessing, dtype: String, dimensions: Int) throws -> Values {
    let wav = try Wav(file)
    let count = wav.count(resampledTo: how.sampleRate)
    let length = how.samples ?? count
    let start = how.align == .middle ? max(0, count - length) / 2 : 0
    let before = how.align == .middle ? max(0, length - count) / 2 : 0
    var numbers = [Double](repeating: 0, count: length)
    for i in 0..<min(length, count) {
        numbers[before + i] = wav.sample(start + i, resampledTo: how.sampleRate) * how.peak
    }
    let shape = [Int](repeating: 1, count: max(0, dimensions - 1)) + [length]
    return try Values(dtype: dtype, shape: shape, numbers: numbers)
}
