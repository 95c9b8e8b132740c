// The class of each place of an output, such as each pixel of an image.

package edgeopt.sample

import java.util.Locale

private const val BETWEEN_SIDES = "x"

/** The classes of all places, row by row; `shape` of an image is its height and width. */
class ClassMap(val classes: IntArray, val shape: List<Int>) {
    val size: String get() = shape.joinToString(BETWEEN_SIDES)
}

/** Returns the best class of each place of the first sample. */
fun classMap(values: Values, classAxis: Int): ClassMap {
    val sizes = values.shape.map { it.toInt() }
    val axis = if (classAxis < 0) classAxis + sizes.size else classAxis
    val count = sizes[axis]
    val outer = sizes.subList(1, axis).fold(1) { total, size -> total * size }
    val inner = sizes.drop(axis + 1).fold(1) { total, size -> total * size }
    val numbers = values.numbers
    val classes = IntArray(outer * inner) { place ->
        val first = place / inner * count * inner + place % inner
        (0 until count).maxByOrNull { numbers[first + it * inner] } ?: 0
    }
    return ClassMap(classes, sizes.filterIndexed { dimension, _ -> dimension != 0 && dimension != axis })
}

/** Returns the share of each class that occurs, the largest first, one a line. */
fun describeMap(map: ClassMap, labels: List<String>): String {
    val counts = map.classes.toList().groupingBy { it }.eachCount().entries
    val order = compareByDescending<Map.Entry<Int, Int>> { it.value }.thenBy { it.key }
    return counts.sortedWith(order).joinToString("\n") { (index, count) ->
        val share = String.format(Locale.ROOT, "%.1f", 100.0 * count / map.classes.size)
        "${labels.getOrNull(index) ?: index}: $share %"
    }
}
