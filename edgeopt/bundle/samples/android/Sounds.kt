// Sounds as inputs of the model: a .wav of 16 bits, resampled, and cut or filled to the model's length as manifest.json
// says.

package edgeopt.sample

import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.math.PI
import kotlin.math.abs
import kotlin.math.ceil
import kotlin.math.cos
import kotlin.math.max
import kotlin.math.min
import kotlin.math.sin
import org.json.JSONObject

private const val PCM_PEAK = 32768
private const val ZERO_CROSSINGS = 16 // of the filter that resamples, on each side

/** Where a .wav has its samples. */
private class Wav(val rate: Int, val channels: Int, val start: Int, val count: Int)

/** Returns the mean of the channels of each sample, in -1 to 1. */
private fun readSamples(bytes: ByteBuffer, wav: Wav) = DoubleArray(wav.count) { index ->
    val first = wav.start + 2 * index * wav.channels
    val sum = (0 until wav.channels).sumOf { bytes.getShort(first + 2 * it).toInt() }
    sum.toDouble() / wav.channels / PCM_PEAK
}

/** Returns one sample of a sound that gets `wanted` samples a second, without frequencies that these cannot hold. */
private fun resampledAt(index: Int, sound: DoubleArray, rate: Int, wanted: Int): Double {
    val kept = min(1.0, wanted.toDouble() / rate) // of the frequencies
    val reach = ceil(ZERO_CROSSINGS / kept).toInt() // old samples on each side of a new one
    val place = index.toLong() * rate
    val nearest = (place / wanted).toInt()
    val rest = (place % wanted).toDouble() / wanted
    var sum = 0.0
    var weights = 0.0
    for (step in 1 - reach..reach) {
        val apart = (step - rest) * kept
        val turn = cos(PI / 2 * min(1.0, abs(apart) / ZERO_CROSSINGS))
        val weight = turn * turn * (if (apart == 0.0) 1.0 else sin(PI * apart) / (PI * apart))
        sum += weight * (sound.getOrNull(nearest + step) ?: 0.0)
        weights += weight
    }
    return sum / weights
}

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
    if (data == null || bits != 16 || channels < 1 || rate < 1) throw SampleError("Give a .wav of 16 bits.")
    return Wav(rate, channels, data.first, data.second / 2 / channels)
}

/** Returns a .wav of 16 bits as a batch of one sample, with as many dimensions as the model's input. */
fun prepareSound(file: ByteArray, how: JSONObject, dtype: String, dimensions: Int): Values {
    val bytes = ByteBuffer.wrap(file).order(ByteOrder.LITTLE_ENDIAN)
    val wav = readHeader(bytes)
    val sound = readSamples(bytes, wav)
    val rate = how.getInt("sample_rate")
    val isRightRate = wav.rate == rate
    val count = if (isRightRate) wav.count else ((wav.count.toLong() * rate + wav.rate - 1) / wav.rate).toInt()
    val length = how.intOrNull("samples") ?: count
    val isMiddle = when (val align = how.getString("align")) {
        "middle" -> true
        "start" -> false
        else -> throw unknownWord("align", align)
    }
    val start = if (isMiddle) max(0, count - length) / 2 else 0
    val before = if (isMiddle) max(0, length - count) / 2 else 0
    val peak = how.getDouble("peak")
    val numbers = DoubleArray(length)
    for (i in 0 until min(length, count)) {
        val value = if (isRightRate) sound[start + i] else resampledAt(start + i, sound, wav.rate, rate)
        numbers[before + i] = value * peak
    }
    val shape = LongArray(dimensions) { if (it == dimensions - 1) length.toLong() else 1L }
    return Values(dtype, shape, numbers)
}
