// Runs the model of this bundle on iOS: opens it, tests it with the files of golden/, and answers for a file.
// Everything that is known of the model is in manifest.json; take from these files what your app needs.

import Foundation
import OnnxRuntimeBindings

private let shownClasses = 3

/// The model of a bundle.
final class Model {
    private let folder: URL
    private let manifest: Manifest
    private let environment: ORTEnv
    private let session: ORTSession

    /// Opens the model of the bundle in a folder.
    init(folder: URL) throws {
        self.folder = folder
        manifest = try Manifest.read(readFile("manifest.json", in: folder))
        for tensor in manifest.inputs + manifest.outputs { try elementType(of: tensor) }
        environment = try ORTEnv(loggingLevel: .warning)
        let path = folder.appendingPathComponent("model.onnx").path
        session = try ORTSession(env: environment, modelPath: path, sessionOptions: nil)
    }

    /// Compares preprocessing, outputs and answers with those of the build; returns what is wrong.
    func findMistakes() throws -> [String] {
        if manifest.golden.isEmpty { return [] }
        var mistakes: [String] = []
        var feeds: [String: Values] = [:]
        for entry in manifest.golden where entry.role != .output {
            let expected = try readArray(entry)
            if entry.role == .input { feeds[entry.name] = expected }
            if !entry.raw.isEmpty { mistakes += try findMistakesOfPreprocessing(entry, expected) }
        }
        let found = try run(feeds)
        for entry in manifest.golden where entry.role == .output {
            let expected = try readArray(entry).numbers()
            let numbers = try found[entry.name]?.numbers() ?? []
            let isShare = entry.differentRatio > 0 // whole numbers: a share of them may differ
            let apart = isShare ? differentShare(numbers, expected) : difference(numbers, expected, mean: false)
            let allowed = isShare ? entry.differentRatio : entry.tolerance ?? 0
            if !(apart <= allowed) {
                mistakes.append("output '\(entry.name)' is off by \(short(apart)); \(short(allowed)) is allowed")
            }
        }
        return try mistakes + findWrongClasses(found) + findWrongBoxes(found)
    }

    private func findMistakesOfPreprocessing(_ entry: GoldenEntry, _ expected: Values) throws -> [String] {
        guard let tensor = manifest.inputs.first(where: { $0.name == entry.name }) else { return [] }
        let made = try entry.raw.flatMap { try makeInput(of: readFile($0, in: folder), for: tensor).numbers() }
        let apart = try difference(made, expected.numbers(), mean: entry.role == .resized)
        let allowed = entry.tolerance ?? 0
        if apart <= allowed { return [] }
        let what = entry.role == .resized ? "resizing" : "preprocessing"
        return ["\(what) of '\(entry.name)' is off by \(short(apart)); \(short(allowed)) is allowed"]
    }

    private func findWrongBoxes(_ found: [String: Values]) throws -> [String] {
        guard let maps = manifest.boxes else { return [] }
        let answers = Dictionary(grouping: manifest.answers.filter { $0.box != nil }) { $0.sample }
        return try answers.sorted { $0.key < $1.key }.flatMap { sample, right -> [String] in
            let boxes = try readBoxes(maps, labels: manifest.labels, outputs: found, sample: sample)
            return compareBoxes(sample: sample, answers: right, found: boxes)
        }
    }

    private func findWrongClasses(_ found: [String: Values]) throws -> [String] {
        try manifest.answers.filter { $0.box == nil }.compactMap { answer -> String? in
            let scores = try found[answer.output]?.sample(answer.sample) ?? []
            let index = ranked(scores).first ?? -1
            let isRight = index == answer.classIndex && (answer.label == nil || label(index) == answer.label)
            let right = answer.label ?? String(answer.classIndex)
            return isRight ? nil : "sample \(answer.sample) is '\(right)', not '\(label(index) ?? String(index))'"
        }
    }

    /// Says in words what the self-test has found.
    func verdict(_ mistakes: [String]) -> String {
        if !mistakes.isEmpty { return mistakes.map { "self-test: \($0)" }.joined(separator: "\n") }
        return manifest.golden.isEmpty ? "self-test: this bundle has no golden files" : "self-test: passed"
    }

    /// Returns the model's answer for the content of a file, as text; that of a model with states is after the end.
    func answer(for file: Data) throws -> String {
        let states = manifest.inputs.filter { $0.nextValue != nil }
        let others = manifest.inputs.filter { $0.nextValue == nil }
        guard let tensor = others.first, others.count == 1 else {
            throw SampleError(
                "The model takes several inputs: make them as manifest.json says, and call session.run."
            )
        }
        var feeds: [String: Values] = [:]
        for state in states { feeds[state.name] = try firstState(state) }
        var found: [String: Values] = [:]
        for chunk in try states.isEmpty ? [makeInput(of: file, for: tensor)] : makeChunks(of: file, for: tensor) {
            feeds[tensor.name] = makeBatch(of: chunk, for: tensor)
            found = try run(feeds)
            for state in states { feeds[state.name] = found[state.nextValue ?? ""] }
        }
        for state in states { found[state.nextValue ?? ""] = nil }
        return try [describe(found), describeBoxes(found, of: file, for: tensor)]
            .filter { !$0.isEmpty }
            .joined(separator: "\n")
    }

    private func describeBoxes(_ found: [String: Values], of file: Data, for tensor: TensorInfo) throws -> String {
        guard let maps = manifest.boxes, case .image(let how) = tensor.preprocessing else { return "" }
        let size = try sizeOf(file)
        let boxes = try readBoxes(maps, labels: manifest.labels, outputs: found)
        return linesOf(boxes.map { toImage($0, size, fitOf(size, how)) }, minScore: maps.minScore)
    }

    /// Returns a file as the inputs of a model with states: a sound in chunks, an image as one frame.
    private func makeChunks(of file: Data, for tensor: TensorInfo) throws -> [Values] {
        guard case .sound(let how) = tensor.preprocessing else { return [try makeInput(of: file, for: tensor)] }
        return try cutSound(file, how, for: tensor)
    }

    /// Repeats a sample if the batch of the model is fixed.
    private func makeBatch(of one: Values, for tensor: TensorInfo) -> Values {
        let batch = tensor.shape.first?.size ?? 1
        let bytes = Data((0..<batch).flatMap { _ in one.bytes })
        return Values(dtype: one.dtype, shape: [batch] + one.shape.dropFirst(), bytes: bytes)
    }

    /// Returns a file's content as the model's input, a batch of one sample.
    private func makeInput(of file: Data, for tensor: TensorInfo) throws -> Values {
        switch tensor.preprocessing {
        case .image(let how):
            return try prepareImage(decodeImage(file, color: how.color), how, dtype: tensor.dtype)
        case .sound(let how):
            return try prepareSound(file, how, dtype: tensor.dtype, dimensions: tensor.shape.count)
        case nil:
            throw SampleError(
                "manifest.json has no preprocessing for '\(tensor.name)', so no file can be its input."
            )
        }
    }

    private func readArray(_ entry: GoldenEntry) throws -> Values {
        Values(dtype: entry.dtype, shape: entry.shape, bytes: try readFile(entry.file, in: folder))
    }

    private func run(_ feeds: [String: Values]) throws -> [String: Values] {
        var inputs: [String: ORTValue] = [:]
        for tensor in manifest.inputs {
            if let values = feeds[tensor.name] { inputs[tensor.name] = try makeTensor(values, for: tensor) }
        }
        let names = Set(manifest.outputs.map { $0.name })
        let outputs = try session.run(withInputs: inputs, outputNames: names, runOptions: nil)
        var found: [String: Values] = [:]
        for tensor in manifest.outputs {
            if let value = outputs[tensor.name] { found[tensor.name] = try readTensor(value, of: tensor) }
        }
        return found
    }

    /// Returns the best classes of outputs with scores, the shares of the classes of maps, and the form of others.
    private func describe(_ found: [String: Values]) throws -> String {
        try manifest.outputs.compactMap { output -> String? in
            guard let values = found[output.name], !isMapOfBoxes(output.name) else { return nil }
            if let axis = output.classAxis, values.shape.count > 2 {
                let map = try ClassMap(values, classAxis: axis)
                let size = map.shape.map { String($0) }.joined(separator: "x")
                return "\(output.name): class map of \(size)\n\(map.describe(labels: manifest.labels))"
            }
            guard values.shape.count == 2, output.classAxis == 1 || output.classAxis == -1 else {
                return "\(output.name): \(values.dtype) \(values.shape)"
            }
            let scores = try values.sample(0)
            let lines = ranked(scores).prefix(shownClasses).map { index -> String in
                "\(label(index) ?? String(index)): \(String(format: "%.4g", scores[index]))"
            }
            return lines.joined(separator: "\n")
        }.joined(separator: "\n")
    }

    private func isMapOfBoxes(_ name: String) -> Bool {
        manifest.boxes.map { name == $0.heatmap || name == $0.sides } ?? false
    }

    private func label(_ index: Int) -> String? {
        manifest.labels.indices.contains(index) ? manifest.labels[index] : nil
    }
}

private func readFile(_ name: String, in folder: URL) throws -> Data {
    do {
        return try Data(contentsOf: folder.appendingPathComponent(name))
    } catch {
        throw SampleError("\(name) cannot be read: add the whole bundle to the app, as a folder.")
    }
}

/// Returns the classes from the best to the worst; the first one of equal ones comes first.
private func ranked(_ scores: [Double]) -> [Int] {
    scores.indices.sorted { scores[$0] != scores[$1] ? scores[$0] > scores[$1] : $0 < $1 }
}

private func short(_ number: Double) -> String { String(format: "%.3g", number) }

/// Returns the largest absolute difference, or the mean one; infinite if one cannot be said.
private func difference(_ found: [Double], _ expected: [Double], mean: Bool) -> Double {
    if found.count != expected.count { return .infinity }
    var largest = 0.0
    var sum = 0.0
    for (one, other) in zip(found, expected) {
        let apart = one == other ? 0 : abs(one - other)
        if apart.isNaN { return .infinity }
        largest = max(largest, apart)
        sum += apart
    }
    return mean ? sum / Double(max(1, found.count)) : largest
}

/// Returns the share of numbers that differ.
private func differentShare(_ found: [Double], _ expected: [Double]) -> Double {
    if found.count != expected.count { return 1 }
    return Double(zip(found, expected).filter { $0 != $1 }.count) / Double(max(1, found.count))
}
