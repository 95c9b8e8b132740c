// Sounds as inputs of the model: a .wav of 16 bits, cut or filled to the model's length as manifest.json says.

package edgeopt.sample

import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.math.max
import kotlin.math.min
import org.json.JSONObject

private const val PCM_PEAK = 32768

/** Where a .wav has its samples. */
private class Wav(val rate: Int, val channels: Int, val start: Int, val count: Int)

private fun readHeader(bytes: ByteBuffer): Wav {
    var rate = 0
    var channels = 1
    var bits = 16
    var data: Pair<Int, Int>? = null
    var at = 12L
    while (at + 8 <= bytes.limit()) {
        val start = at.toInt() + 8
        val left = bytes.limit() - start
        val size = bytes.getInt(start - 4).toLong() and 0xFFFFFFFFL
        when (String(ByteArray(4) { bytes.get(start - 8 + it) }, Charsets.ISO_8859_1)) {
            "fmt " -> if (left >= 16) {
                channels = bytes.getShort(start + 2).toInt() and 0xFFFF
                rate = bytes.getInt(start + 4)
                bits = bytes.getShort(start + 14).toInt()
            }
            "data" -> data = start to min(size, left.toLong()).toInt()
        }
        at += 8 + size + size % 2
    }
    if (data == null || bits != 16 || channels < 1) throw SampleError("Give a .wav of 16 bits.")
    return Wav(rate, channels, data.first, data.second / 2 / channels)
}

/** Returns a .wav of 16 bits as a batch of one sample, with as many dimensions as the model's input. */
fun prepareSound(file: ByteArray, how: JSONObject, dtype: String, dimensions: Int): Values {
    val bytes = ByteBuffer.wrap(file).order(ByteOrder.LITTLE_ENDIAN)
    val wav = readHeader(bytes)
    val expectedRate = how.getInt("sample_rate")
    if (wav.rate != expectedRate)
        throw SampleError("The sound has ${wav.rate} samples a second; resample it to $expectedRate first.")
    val length = how.intOrNull("samples") ?: wav.count
    val isMiddle = when (val align = how.getString("align")) {
        "middle" -> true
        "start" -> false
        else -> throw unknownWord("align", align)
    }
    val start = if (isMiddle) max(0, wav.count - length) / 2 else 0
    val before = if (isMiddle) max(0, length - wav.count) / 2 else 0
    val peak = how.getDouble("peak")
    val numbers = DoubleArray(length)
    for (i in 0 until min(length, wav.count)) {
        val first = wav.start + 2 * (start + i) * wav.channels
        val sum = (0 until wav.channels).sumOf { bytes.getShort(first + 2 * it).toInt() }
        numbers[before + i] = sum.toDouble() / wav.channels / PCM_PEAK * peak
    }
    val shape = LongArray(dimensions) { if (it == dimensions - 1) length.toLong() else 1L }
    return Values(dtype, shape, numbers)
}
