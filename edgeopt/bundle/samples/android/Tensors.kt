// Arrays of the manifest's types: as bytes, as numbers, and as tensors of ONNX Runtime.

package edgeopt.sample

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OnnxValue
import ai.onnxruntime.OrtEnvironment
import android.util.Half
import java.nio.ByteBuffer
import java.nio.ByteOrder

/** An array of one of the manifest's types, as little-endian bytes in C order. */
class Values(val dtype: String, val shape: LongArray, val bytes: ByteArray) {
    /** Makes an array of numbers, which are rounded to what the type holds. */
    constructor(dtype: String, shape: LongArray, numbers: DoubleArray) : this(dtype, shape, bytesOf(numbers, dtype))

    val numbers: DoubleArray by lazy { numbersOf(bytes, dtype) }

    /** Returns the numbers of one sample of an output of shape (samples, classes). */
    fun sample(index: Int): DoubleArray {
        val classes = shape[1].toInt()
        return numbers.copyOfRange(index * classes, (index + 1) * classes)
    }
}

/** How a number is stored. */
private class Format(val size: Int, val next: (ByteBuffer) -> Double, val add: (ByteBuffer, Double) -> Unit)

private fun formatOf(dtype: String): Format = when (dtype) {
    "float64" -> Format(8, { it.double }, { to, number -> to.putDouble(number) })
    "float32" -> Format(4, { it.float.toDouble() }, { to, number -> to.putFloat(number.toFloat()) })
    "float16" -> Format(2, { Half.toFloat(it.short).toDouble() }) { to, number ->
        to.putShort(Half.toHalf(number.toFloat()))
    }
    "int64" -> Format(8, { it.long.toDouble() }, { to, number -> to.putLong(whole(number)) })
    "int32" -> Format(4, { it.int.toDouble() }, { to, number -> to.putInt(whole(number).toInt()) })
    "int16" -> Format(2, { it.short.toDouble() }, { to, number -> to.putShort(whole(number).toShort()) })
    "int8" -> Format(1, { it.get().toDouble() }, { to, number -> to.put(whole(number).toByte()) })
    "uint64" -> Format(8, { it.long.toULong().toDouble() }, { to, number -> to.putLong(whole(number)) })
    "uint32" -> Format(4, { it.int.toUInt().toDouble() }, { to, number -> to.putInt(whole(number).toInt()) })
    "uint16" -> Format(2, { it.short.toUShort().toInt().toDouble() }) { to, number ->
        to.putShort(whole(number).toShort())
    }
    "uint8", "bool" -> Format(1, { it.get().toUByte().toInt().toDouble() }) { to, number ->
        to.put(whole(number).toByte())
    }
    else -> throw SampleError("This sample has no arrays of $dtype.")
}

private fun whole(number: Double) = Math.rint(number).toLong()

private fun numbersOf(bytes: ByteArray, dtype: String): DoubleArray {
    val format = formatOf(dtype)
    val source = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN)
    return DoubleArray(bytes.size / format.size) { format.next(source) }
}

private fun bytesOf(numbers: DoubleArray, dtype: String): ByteArray {
    val format = formatOf(dtype)
    val target = ByteBuffer.allocate(numbers.size * format.size).order(ByteOrder.LITTLE_ENDIAN)
    numbers.forEach { format.add(target, it) }
    return target.array()
}

/** Returns an array as an input of the model. */
fun makeTensor(environment: OrtEnvironment, name: String, values: Values): OnnxTensor {
    val bytes = ByteBuffer.wrap(values.bytes).order(ByteOrder.LITTLE_ENDIAN)
    val shape = values.shape
    return when (values.dtype) {
        "float64" -> OnnxTensor.createTensor(environment, bytes.asDoubleBuffer(), shape)
        "float32" -> OnnxTensor.createTensor(environment, bytes.asFloatBuffer(), shape)
        "float16" -> OnnxTensor.createTensor(environment, bytes.asShortBuffer(), shape, OnnxJavaType.FLOAT16)
        "int64" -> OnnxTensor.createTensor(environment, bytes.asLongBuffer(), shape)
        "int32" -> OnnxTensor.createTensor(environment, bytes.asIntBuffer(), shape)
        "int16" -> OnnxTensor.createTensor(environment, bytes.asShortBuffer(), shape)
        "int8" -> OnnxTensor.createTensor(environment, bytes, shape, OnnxJavaType.INT8)
        "uint8" -> OnnxTensor.createTensor(environment, bytes, shape, OnnxJavaType.UINT8)
        "bool" -> OnnxTensor.createTensor(environment, bytes, shape, OnnxJavaType.BOOL)
        else -> throw SampleError("ONNX Runtime makes no tensors of ${values.dtype} in Java, and '$name' is one.")
    }
}

/** Returns an output of the model. */
fun readTensor(name: String, output: OnnxValue?, dtype: String): Values {
    val tensor = output as? OnnxTensor
    val buffer = tensor?.byteBuffer ?: throw SampleError("The output '$name' is not an array of numbers.")
    val bytes = ByteArray(buffer.remaining()).also { buffer.get(it) }
    return Values(dtype, tensor.info.shape, bytes)
}
