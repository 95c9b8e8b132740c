// What these files read of manifest.json. Names are those of its keys: `crop_ratio` there is `cropRatio` here.

import Foundation

/// What is wrong, in a sentence for whoever uses the app.
struct SampleError: LocalizedError {
    let errorDescription: String?

    init(_ sentence: String) {
        errorDescription = sentence
    }
}

struct Manifest: Decodable {
    let inputs: [TensorInfo]
    let outputs: [TensorInfo]
    let labels: [String]
    let golden: [GoldenEntry]
    let answers: [GoldenAnswer]
    let boxes: BoxMaps?

    static func read(_ file: Data) throws -> Manifest {
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        do {
            return try decoder.decode(Manifest.self, from: file)
        } catch {
            throw SampleError("manifest.json has what this sample does not know: use the sample of the same bundle.")
        }
    }
}

/// An input or an output of the model.
struct TensorInfo: Decodable {
    let name: String
    let shape: [Dimension]
    let dtype: String
    let classAxis: Int?
    let preprocessing: Preprocessing?
    let nextValue: String?
    let beginsWithZeros: Bool?
}

/// A number, or the name of a dimension that may have any size.
struct Dimension: Decodable {
    let size: Int?
    let isBatch: Bool

    init(from decoder: Decoder) throws {
        let container = try decoder.singleValueContainer()
        size = try? container.decode(Int.self)
        isBatch = (try? container.decode(String.self)) == "batch"
    }
}

/// An array of `golden/`.
struct GoldenEntry: Decodable {
    enum Role: String, Decodable {
        case input, output, resized
    }

    let name: String
    let role: Role
    let file: String
    let dtype: String
    let shape: [Int]
    let tolerance: Double?
    let differentRatio: Double
    let raw: [String]
}

/// What an output says about a sample of the golden inputs.
struct GoldenAnswer: Decodable {
    let output: String
    let sample: Int
    let classIndex: Int
    let label: String?
    let box: GoldenBox?
}

/// A box of a sample of the golden inputs: left, top, right and bottom in pixels of the model's input.
struct GoldenBox: Decodable {
    let corners: [Double]
    let tolerance: Double
    let score: Double
    let scoreTolerance: Double
    let isCertain: Bool
}

/// How boxes are read from two outputs of a detector.
struct BoxMaps: Decodable {
    let heatmap: String
    let sides: String
    let stride: Double
    let logSides: [Double]
    let minScore: Double
    let maxBoxes: Int
}

/// How a file becomes an input.
enum Preprocessing: Decodable {
    case image(ImagePreprocessing)
    case sound(SoundPreprocessing)

    private enum CodingKeys: String, CodingKey {
        case kind
    }

    init(from decoder: Decoder) throws {
        switch try decoder.container(keyedBy: CodingKeys.self).decode(String.self, forKey: .kind) {
        case "image": self = .image(try ImagePreprocessing(from: decoder))
        case "sound": self = .sound(try SoundPreprocessing(from: decoder))
        default: throw SampleError("The kind of the preprocessing is unknown.")
        }
    }
}

struct ImagePreprocessing: Decodable {
    enum ResizeRule: String, Decodable {
        case crop, stretch, pad
    }

    enum ColorOrder: String, Decodable {
        case rgb, bgr, gray
    }

    enum Layout: String, Decodable {
        case nchw, nhwc
    }

    enum ImageType: String, Decodable {
        case float32, uint8
    }

    let height: Int?
    let width: Int?
    let resize: ResizeRule
    let cropRatio: Double
    let color: ColorOrder
    let layout: Layout
    let scale: Double
    let mean: [Double]
    let std: [Double]
    let dtype: ImageType
}

struct SoundPreprocessing: Decodable {
    enum Alignment: String, Decodable {
        case start, middle
    }

    let sampleRate: Int
    let samples: Int?
    let align: Alignment
    let peak: Double
}
