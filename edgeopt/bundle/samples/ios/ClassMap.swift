// The class of each place of an output, such as each pixel of an image.

import Foundation

/// The classes of all places, row by row; `shape` of an image is its height and width.
struct ClassMap {
    let classes: [Int]
    let shape: [Int]

    /// Takes the best class of each place of the first sample.
    init(_ values: Values, classAxis: Int) throws {
        let sizes = values.shape
        let axis = classAxis < 0 ? classAxis + sizes.count : classAxis
        let count = sizes[axis]
        let outer = sizes[1..<axis].reduce(1, *)
        let inner = sizes[(axis + 1)...].reduce(1, *)
        let numbers = try values.numbers()
        classes = (0..<outer * inner).map { place -> Int in
            let first = place / inner * count * inner + place % inner
            var best = 0
            for index in 0..<count where numbers[first + index * inner] > numbers[first + best * inner] { best = index }
            return best
        }
        shape = sizes.indices.filter { $0 != 0 && $0 != axis }.map { sizes[$0] }
    }

    /// Returns the share of each class that occurs, the largest first, one a line.
    func describe(labels: [String]) -> String {
        var counts: [Int: Int] = [:]
        for index in classes { counts[index, default: 0] += 1 }
        let ranked = counts.sorted { $0.value != $1.value ? $0.value > $1.value : $0.key < $1.key }
        let lines = ranked.map { index, count -> String in
            let share = String(format: "%.1f", 100 * Double(count) / Double(classes.count))
            return "\(labels.indices.contains(index) ? labels[index] : String(index)): \(share) %"
        }
        return lines.joined(separator: "\n")
    }
}
