// Boxes of a detector: read from its two maps as manifest.json says, and moved back to the image.

package edgeopt.sample

import java.util.Locale
import kotlin.math.abs
import kotlin.math.exp
import org.json.JSONObject

private const val BETWEEN_CORNERS = " "

/** A box: left, top, right and bottom in pixels of the model's input, or of the image. */
class Box(val label: String, val score: Double, val corners: List<Double>)

/** The values of one class of a heat-map; they are minus infinity outside of it. */
private class ClassHeat(val numbers: DoubleArray, val start: Int, val height: Int, val width: Int) {
    fun at(row: Int, column: Int): Double =
        if (row in 0 until height && column in 0 until width) numbers[start + row * width + column]
        else Double.NEGATIVE_INFINITY

    /** Tells whether a value is a peak: of equal neighbours, the first counts. */
    fun isPeak(row: Int, column: Int): Boolean = (0 until 9).all { number ->
        val neighbour = at(row + number / 3 - 1, column + number % 3 - 1)
        if (number < 4) at(row, column) > neighbour else at(row, column) >= neighbour
    }
}

/** Returns the boxes of a sample, the highest score first, in pixels of the model's input. */
fun readBoxes(maps: JSONObject, labels: List<String>, outputs: Map<String, Values>, sample: Int = 0): List<Box> {
    val heatmap = outputs.getValue(maps.getString("heatmap"))
    val sides = outputs.getValue(maps.getString("sides")).numbers
    val (classes, height, width) = heatmap.shape.drop(1).map { it.toInt() }
    val places = height * width
    val stride = maps.getDouble("stride")
    val (low, high) = maps.numbers("log_sides")
    val boxes = mutableListOf<Box>()
    for (index in 0 until classes) {
        val heat = ClassHeat(heatmap.numbers, (sample * classes + index) * places, height, width)
        for (place in 0 until places) {
            val (row, column) = place / width to place % width
            val score = 1 / (1 + exp(-heat.at(row, column)))
            if (!(score >= maps.getDouble("min_score")) || !heat.isPeak(row, column)) continue
            val (left, top, right, bottom) = List(4) { side ->
                stride * exp(sides[(sample * 4 + side) * places + place].coerceIn(low, high))
            }
            val (x, y) = (column + 0.5) * stride to (row + 0.5) * stride
            val corners = listOf(x - left, y - top, x + right, y + bottom)
            boxes += Box(labels.getOrNull(index) ?: index.toString(), score, corners)
        }
    }
    return boxes.sortedByDescending { it.score }.take(maps.getInt("max_boxes"))
}

/** Returns a box in the pixels of the image that was fitted to the model's input, and inside of it. */
fun toImage(box: Box, size: ImageSize, fit: Fit): Box {
    val corners = box.corners.mapIndexed { side, place ->
        val isVertical = side % 2 == 1
        val (before, after) = if (isVertical) size.height to fit.height else size.width to fit.width
        val moved = (place + if (isVertical) fit.top else fit.left) * before / after
        moved.coerceIn(0.0, before.toDouble())
    }
    return Box(box.label, box.score, corners)
}

/** Returns left, top, right and bottom as text. */
private fun placeOf(corners: List<Double>): String =
    corners.joinToString(BETWEEN_CORNERS) { String.format(Locale.ROOT, "%.1f", it) }

/** Returns one line for each box. */
fun linesOf(boxes: List<Box>, minScore: Double): String {
    if (boxes.isEmpty()) return "no boxes with a score of at least $minScore"
    return boxes.joinToString("\n") { box ->
        "${box.label}: ${String.format(Locale.ROOT, "%.3f", box.score)} at ${placeOf(box.corners)}"
    }
}

private fun labelOf(answer: JSONObject): String =
    if (answer.isNull("label")) answer.getInt("class_index").toString() else answer.getString("label")

/** Tells whether a box is that of an answer, within its tolerances. */
private fun isSameBox(answer: JSONObject, box: Box): Boolean {
    val right = answer.getJSONObject("box")
    val apart = right.numbers("corners").zip(box.corners) { one, other -> abs(one - other) }.maxOf { it }
    val isNear = apart <= right.getDouble("tolerance")
    val isAsSure = abs(box.score - right.getDouble("score")) <= right.getDouble("score_tolerance")
    return isNear && isAsSure && box.label == labelOf(answer)
}

/** Compares the boxes of a sample: certain ones have to be found, and nothing that is no answer. */
internal fun compareBoxes(sample: Int, answers: List<JSONObject>, found: List<Box>): List<String> {
    val missing = answers.filter { answer ->
        answer.getJSONObject("box").getBoolean("is_certain") && found.none { isSameBox(answer, it) }
    }
    val further = found.filter { box -> answers.none { isSameBox(it, box) } }
    return missing.map { answer ->
        val place = placeOf(answer.getJSONObject("box").numbers("corners").asList())
        "sample $sample has no '${labelOf(answer)}' at $place"
    } + further.map { "sample $sample has a '${it.label}' at ${placeOf(it.corners)} that the build has not found" }
}
