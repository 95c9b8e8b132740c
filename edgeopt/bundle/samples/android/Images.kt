// Images as inputs of the model: decoded, fitted to its size and scaled as manifest.json says.

package edgeopt.sample

import android.graphics.Bitmap
import android.graphics.BitmapFactory
import android.media.ExifInterface
import java.io.ByteArrayInputStream
import java.io.IOException
import java.nio.ByteBuffer
import kotlin.math.abs
import kotlin.math.ceil
import kotlin.math.floor
import kotlin.math.max
import kotlin.math.min
import kotlin.math.roundToInt
import org.json.JSONObject

/** An image: a byte for each value, the channels of a pixel side by side. */
class Pixels(val data: ByteArray, val height: Int, val width: Int, val channels: Int) {
    constructor(height: Int, width: Int, channels: Int) :
        this(ByteArray(height * width * channels), height, width, channels)

    fun byteAt(index: Int): Int = data[index].toInt() and 0xFF
}

/** Returns the pixels of an image file, upright; its colour profile does not count. */
fun decodeImage(file: ByteArray, color: String): Pixels {
    val decoded = BitmapFactory.decodeByteArray(file, 0, file.size)
        ?: throw SampleError("The file is not an image that Android reads.")
    val plain = Bitmap.Config.ARGB_8888
    val bitmap = if (decoded.config == plain) decoded else decoded.copy(plain, false)
    val rgba = ByteBuffer.allocate(bitmap.byteCount)
    bitmap.copyPixelsToBuffer(rgba) // as they are in the file; getPixels would convert from its profile to sRGB
    return turnUpright(dropAlpha(rgba.array(), bitmap.height, bitmap.width, color), orientationOf(file))
}

class ImageSize(val height: Int, val width: Int)

/** Returns the size of the image in a file, upright, without decoding it. */
fun sizeOf(file: ByteArray): ImageSize {
    val bounds = BitmapFactory.Options().apply { inJustDecodeBounds = true }
    BitmapFactory.decodeByteArray(file, 0, file.size, bounds)
    val isTurned = orientationOf(file) >= 5 // its rows become columns
    return if (isTurned) ImageSize(bounds.outWidth, bounds.outHeight) else ImageSize(bounds.outHeight, bounds.outWidth)
}

private fun orientationOf(file: ByteArray): Int {
    val normal = ExifInterface.ORIENTATION_NORMAL
    return try {
        ExifInterface(ByteArrayInputStream(file)).getAttributeInt(ExifInterface.TAG_ORIENTATION, normal)
    } catch (error: IOException) {
        normal // a kind of image that has none
    }
}

/** Returns an image of red, green, blue and alpha in colours or grey. */
fun dropAlpha(rgba: ByteArray, height: Int, width: Int, color: String): Pixels {
    val channels = when (color) {
        "gray" -> 1
        "rgb", "bgr" -> 3
        else -> throw unknownWord("color", color)
    }
    val image = Pixels(height, width, channels)
    for (pixel in 0 until height * width) {
        if (rgba[4 * pixel + 3] != 0xFF.toByte())
            throw SampleError("The image is transparent: its colours are not certain. Save it without that.")
        if (channels == 3) {
            rgba.copyInto(image.data, 3 * pixel, 4 * pixel, 4 * pixel + 3)
            continue
        }
        val red = rgba[4 * pixel].toInt() and 0xFF
        val green = rgba[4 * pixel + 1].toInt() and 0xFF
        val blue = rgba[4 * pixel + 2].toInt() and 0xFF
        image.data[pixel] = ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) shr 16).toByte() // ITU-R 601
    }
    return image
}

/** Returns an image as its EXIF orientation, 1 to 8, says that it is held. */
fun turnUpright(image: Pixels, orientation: Int): Pixels {
    if (orientation !in 2..8) return image
    val isTurned = orientation >= 5 // its rows become columns
    val fromBottom = orientation in listOf(3, 4, 6, 7)
    val fromRight = orientation in listOf(2, 3, 7, 8)
    val upright =
        if (isTurned) Pixels(image.width, image.height, image.channels)
        else Pixels(image.height, image.width, image.channels)
    for (y in 0 until upright.height)
        for (x in 0 until upright.width) {
            val row = if (isTurned) x else y
            val column = if (isTurned) y else x
            val oldY = if (fromBottom) image.height - 1 - row else row
            val oldX = if (fromRight) image.width - 1 - column else column
            copyPixel(image, oldY, oldX, upright, y, x)
        }
    return upright
}

private fun copyPixel(from: Pixels, fromY: Int, fromX: Int, to: Pixels, toY: Int, toX: Int) {
    val start = (fromY * from.width + fromX) * from.channels
    from.data.copyInto(to.data, (toY * to.width + toX) * to.channels, start, start + from.channels)
}

/** For a new pixel: the first old one that it replaces, and the weights of these. */
private class Weights(val first: Int, val weights: DoubleArray)

/** Returns the weights of each new pixel: a triangle, as in Pillow. */
private fun weightsOf(before: Int, after: Int): List<Weights> {
    val step = before.toDouble() / after
    val support = max(1.0, step)
    return List(after) { index ->
        val center = (index + 0.5) * step
        val first = max(0, floor(center - support).toInt())
        val last = min(before - 1, ceil(center + support).toInt())
        val weights = DoubleArray(last - first + 1) { max(0.0, 1 - abs(first + it + 0.5 - center) / support) }
        val sum = weights.sum()
        Weights(first, DoubleArray(weights.size) { weights[it] / sum })
    }
}

/** Returns an image in another size: bilinear, over all pixels that one replaces. */
fun resizeImage(image: Pixels, height: Int, width: Int): Pixels {
    if (image.height == height && image.width == width) return image
    val channels = image.channels
    val columns = weightsOf(image.width, width)
    val wide = Pixels(image.height, width, channels)
    for (y in 0 until image.height)
        for (x in 0 until width)
            for (c in 0 until channels) {
                val start = (y * image.width + columns[x].first) * channels + c
                wide.data[(y * width + x) * channels + c] = weighted(image, start, channels, columns[x].weights)
            }
    val rows = weightsOf(image.height, height)
    val whole = Pixels(height, width, channels)
    val rowSize = width * channels
    for (y in 0 until height)
        for (x in 0 until rowSize)
            whole.data[y * rowSize + x] = weighted(wide, rows[y].first * rowSize + x, rowSize, rows[y].weights)
    return whole
}

private fun weighted(image: Pixels, start: Int, step: Int, weights: DoubleArray): Byte {
    var sum = 0.0
    for (i in weights.indices) sum += weights[i] * image.byteAt(start + i * step)
    return sum.roundToInt().toByte()
}

/** Returns the part of an image from (top, left); pixels outside of it are black. */
fun cutImage(image: Pixels, top: Int, left: Int, height: Int, width: Int): Pixels {
    val part = Pixels(height, width, image.channels)
    for (y in max(0, -top) until min(height, image.height - top))
        for (x in max(0, -left) until min(width, image.width - left))
            copyPixel(image, y + top, x + left, part, y, x)
    return part
}

private fun roundHalfEven(value: Double) = Math.rint(value).toInt()

/** The size to which an image is resized, and where the model's input begins in it. */
class Fit(val height: Int, val width: Int, val top: Int, val left: Int)

/** Returns how an image of a size is fitted to the size that the model takes. */
fun fitOf(size: ImageSize, how: JSONObject): Fit {
    val height = how.intOrNull("height") ?: return Fit(size.height, size.width, 0, 0)
    val width = how.intOrNull("width") ?: return Fit(size.height, size.width, 0, 0)
    return when (val rule = how.getString("resize")) {
        "stretch" -> Fit(height, width, 0, 0)
        "pad" -> {
            val ratio = min(width.toDouble() / size.width, height.toDouble() / size.height)
            val tall = max(1, roundHalfEven(size.height * ratio))
            val wide = max(1, roundHalfEven(size.width * ratio))
            Fit(tall, wide, -((height - tall) / 2), -((width - wide) / 2))
        }
        "crop" -> cropOf(size, height, width, how.getDouble("crop_ratio"))
        else -> throw unknownWord("resize", rule)
    }
}

private fun cropOf(size: ImageSize, height: Int, width: Int, ratio: Double): Fit {
    val tall: Int
    val wide: Int
    if (size.height.toLong() * width >= size.width.toLong() * height) { // the shorter side decides
        wide = roundHalfEven(width / ratio)
        tall = (wide.toLong() * size.height / size.width).toInt()
    } else {
        tall = roundHalfEven(height / ratio)
        wide = (tall.toLong() * size.width / size.height).toInt()
    }
    return Fit(tall, wide, roundHalfEven((tall - height) / 2.0), roundHalfEven((wide - width) / 2.0))
}

/** Returns an image in the size that the model takes. */
fun resizeToFit(image: Pixels, how: JSONObject): Pixels {
    val fit = fitOf(ImageSize(image.height, image.width), how)
    val resized = resizeImage(image, fit.height, fit.width)
    val (height, width) = (how.intOrNull("height") ?: fit.height) to (how.intOrNull("width") ?: fit.width)
    return cutImage(resized, fit.top, fit.left, height, width)
}

/** Returns an image, in red, green and blue or grey, as a batch of one sample. */
fun prepareImage(image: Pixels, how: JSONObject, dtype: String): Values {
    val fitted = resizeToFit(image, how)
    val channels = fitted.channels
    val size = fitted.height * fitted.width
    val isBgr = how.getString("color") == "bgr"
    val isChannelsFirst = when (val layout = how.getString("layout")) {
        "nchw" -> true
        "nhwc" -> false
        else -> throw unknownWord("layout", layout)
    }
    val isPlain = how.getString("dtype") == "uint8" // pixels as they are; otherwise "float32"
    val (mean, std) = how.numbers("mean") to how.numbers("std") // one number, or one for each channel
    val scale = how.getDouble("scale")
    val numbers = DoubleArray(size * channels)
    for (pixel in 0 until size)
        for (channel in 0 until channels) {
            val byte = fitted.byteAt(pixel * channels + if (isBgr) channels - 1 - channel else channel)
            val place = if (isChannelsFirst) channel * size + pixel else pixel * channels + channel
            val scaled = (byte / scale - mean[channel % mean.size]) / std[channel % std.size]
            numbers[place] = if (isPlain) byte.toDouble() else scaled
        }
    val (height, width) = fitted.height to fitted.width
    val shape = if (isChannelsFirst) listOf(1, channels, height, width) else listOf(1, height, width, channels)
    return Values(dtype, LongArray(4) { shape[it].toLong() }, numbers)
}
