// Models that take a sound in chunks: how it is cut, and the states that go from one chunk to the next.

package edgeopt.sample

import kotlin.math.max
import kotlin.math.min
import org.json.JSONObject

private const val BATCH = "batch"

/** Returns the output that is the value of this input for the next chunk; null if the input is not a state. */
internal fun JSONObject.nextValue(): String? = if (isNull("next_value")) null else getString("next_value")

/** Returns a state before the first chunk: zeros, for a batch of one if any batch goes. */
internal fun firstState(state: JSONObject): Values {
    val name = state.getString("name")
    if (!state.optBoolean("begins_with_zeros"))
        throw SampleError("The state '$name' does not begin with zeros: give its first value to session.run yourself.")
    val sizes = state.getJSONArray("shape").let { shape -> List(shape.length()) { shape.get(it) } }
    val shape = LongArray(sizes.size) { index ->
        val size = sizes[index]
        if (size != BATCH && size !is Int)
            throw SampleError("The state '$name' has no fixed size: give its first value to session.run yourself.")
        if (size is Int) size.toLong() else 1L
    }
    val count = shape.fold(1L) { total, size -> total * size }.toInt()
    return Values(state.getString("dtype"), shape, DoubleArray(count))
}

/** Returns how a sound is prepared that is to be cut into chunks: as a whole. */
internal fun asWhole(how: JSONObject): JSONObject = JSONObject(how.toString()).put("samples", JSONObject.NULL)

/** Returns the length of a chunk. */
internal fun chunkLength(tensor: JSONObject, how: JSONObject): Int {
    val name = tensor.getString("name")
    return how.intOrNull("samples") ?: throw SampleError(
        "manifest.json has no chunk length for '$name' (samples is null): set it in the task, and build again."
    )
}

/** Cuts a whole sound into chunks of `length` samples, the last one filled with zeros. */
internal fun cutSound(sound: Values, length: Int): List<Values> {
    val samples = sound.shape.last().toInt()
    val chunkBytes = length * (sound.bytes.size / max(1, samples))
    val shape = sound.shape.copyOf().also { it[it.size - 1] = length.toLong() }
    if (samples == 0) return listOf(Values(sound.dtype, shape, DoubleArray(length)))
    return List((samples + length - 1) / length) { index ->
        val end = min((index + 1) * chunkBytes, sound.bytes.size)
        Values(sound.dtype, shape, sound.bytes.copyOfRange(index * chunkBytes, end).copyOf(chunkBytes))
    }
}
