// Boxes of a detector: read from its two maps as manifest.json says, and moved back to the image.

import Foundation

/// A box: left, top, right and bottom in pixels of the model's input, or of the image.
struct Box {
    let label: String
    let score: Double
    let corners: [Double]
}

/// The values of one class of a heat-map; they are minus infinity outside of it.
private struct ClassHeat {
    let numbers: [Double]
    let start: Int
    let height: Int
    let width: Int

    func at(_ row: Int, _ column: Int) -> Double {
        let isInside = (0..<height).contains(row) && (0..<width).contains(column)
        return isInside ? numbers[start + row * width + column] : -.infinity
    }

    /// Tells whether a value is a peak: of equal neighbours, the first counts.
    func isPeak(_ row: Int, _ column: Int) -> Bool {
        let value = at(row, column)
        return (0..<9).allSatisfy { number in
            let neighbour = at(row + number / 3 - 1, column + number % 3 - 1)
            return number < 4 ? value > neighbour : value >= neighbour
        }
    }
}

/// Returns the boxes of a sample, the highest score first, in pixels of the model's input.
func readBoxes(
    _ maps: BoxMaps, labels: [String], outputs: [String: Values], sample: Int = 0
) throws -> [Box] {
    guard let heatmap = outputs[maps.heatmap], let sides = try outputs[maps.sides]?.numbers() else { return [] }
    let (classes, height, width) = (heatmap.shape[1], heatmap.shape[2], heatmap.shape[3])
    let places = height * width
    let numbers = try heatmap.numbers()
    var boxes: [Box] = []
    for index in 0..<classes {
        let start = (sample * classes + index) * places
        let heat = ClassHeat(numbers: numbers, start: start, height: height, width: width)
        for place in 0..<places {
            let (row, column) = (place / width, place % width)
            let score = 1 / (1 + exp(-heat.at(row, column)))
            guard score >= maps.minScore, heat.isPeak(row, column) else { continue }
            let reach = (0..<4).map { side -> Double in
                let logarithm = sides[(sample * 4 + side) * places + place]
                return maps.stride * exp(min(max(logarithm, maps.logSides[0]), maps.logSides[1]))
            }
            let (x, y) = ((Double(column) + 0.5) * maps.stride, (Double(row) + 0.5) * maps.stride)
            let corners = [x - reach[0], y - reach[1], x + reach[2], y + reach[3]]
            let label = labels.indices.contains(index) ? labels[index] : String(index)
            boxes.append(Box(label: label, score: score, corners: corners))
        }
    }
    let order = boxes.indices.sorted {
        boxes[$0].score != boxes[$1].score ? boxes[$0].score > boxes[$1].score : $0 < $1
    }
    return order.prefix(maps.maxBoxes).map { boxes[$0] }
}

/// Returns a box in the pixels of the image that was fitted to the model's input, and inside of it.
func toImage(_ box: Box, _ size: ImageSize, _ fit: Fit) -> Box {
    let corners = box.corners.enumerated().map { side, place -> Double in
        let isVertical = side % 2 == 1
        let before = Double(isVertical ? size.height : size.width)
        let after = Double(isVertical ? fit.height : fit.width)
        let moved = (place + Double(isVertical ? fit.top : fit.left)) * before / after
        return min(max(moved, 0), before)
    }
    return Box(label: box.label, score: box.score, corners: corners)
}

/// Returns left, top, right and bottom as text.
private func placeOf(_ corners: [Double]) -> String {
    corners.map { String(format: "%.1f", $0) }.joined(separator: " ")
}

/// Returns one line for each box.
func linesOf(_ boxes: [Box], minScore: Double) -> String {
    if boxes.isEmpty { return "no boxes with a score of at least \(minScore)" }
    let lines = boxes.map { "\($0.label): \(String(format: "%.3f", $0.score)) at \(placeOf($0.corners))" }
    return lines.joined(separator: "\n")
}

private func labelOf(_ answer: GoldenAnswer) -> String { answer.label ?? String(answer.classIndex) }

/// Tells whether a box is that of an answer, within its tolerances.
private func isSameBox(_ answer: GoldenAnswer, _ box: Box) -> Bool {
    guard let right = answer.box else { return false }
    let apart = zip(right.corners, box.corners).map { abs($0 - $1) }.max() ?? .infinity
    let isAsSure = abs(box.score - right.score) <= right.scoreTolerance
    return apart <= right.tolerance && isAsSure && box.label == labelOf(answer)
}

/// Compares the boxes of a sample: certain ones have to be found, and nothing that is no answer.
func compareBoxes(sample: Int, answers: [GoldenAnswer], found: [Box]) -> [String] {
    let missing = answers.compactMap { answer -> String? in
        guard let right = answer.box, right.isCertain, !found.contains(where: { isSameBox(answer, $0) }) else {
            return nil
        }
        return "sample \(sample) has no '\(labelOf(answer))' at \(placeOf(right.corners))"
    }
    let further = found.filter { box in !answers.contains { isSameBox($0, box) } }
    return missing + further.map { box -> String in
        "sample \(sample) has a '\(box.label)' at \(placeOf(box.corners)) that the build has not found"
    }
}
