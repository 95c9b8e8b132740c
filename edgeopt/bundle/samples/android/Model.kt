// Runs the model of this bundle on Android: opens it, tests it with the files of golden/, and answers for a file.
// Everything that is known of the model is in manifest.json; take from these files what your app needs.

package edgeopt.sample

import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import java.util.Locale
import kotlin.math.abs
import kotlin.math.max
import org.json.JSONObject

private const val SHOWN_CLASSES = 3

/** What is wrong, in a sentence for whoever uses the app. */
class SampleError(message: String) : Exception(message)

/** The model of a bundle. `read` returns the content of one of the bundle's files. */
class Model(private val read: (String) -> ByteArray) : AutoCloseable {
    private val manifest = JSONObject(String(read("manifest.json"), Charsets.UTF_8))
    private val inputs = manifest.objects("inputs")
    private val outputs = manifest.objects("outputs")
    private val labels = manifest.strings("labels")
    private val golden = manifest.objects("golden")
    private val boxMaps = manifest.optJSONObject("boxes")
    private val environment = OrtEnvironment.getEnvironment()
    private val session: OrtSession

    init {
        if (manifest.getJSONObject("files").keys().asSequence().any { it.endsWith(".data") })
            throw SampleError("The model has weights in a second file, which this sample does not load.")
        session = environment.createSession(read("model.onnx"))
    }

    override fun close() = session.close()

    /** Compares preprocessing, outputs and answers with those of the build; returns what is wrong. */
    fun findMistakes(): List<String> {
        if (golden.isEmpty()) return emptyList()
        val mistakes = mutableListOf<String>()
        val feeds = mutableMapOf<String, Values>()
        val (expectedOutputs, expectedInputs) = golden.partition { it.getString("role") == "output" }
        for (entry in expectedInputs) {
            val expected = readArray(entry)
            if (entry.getString("role") == "input") feeds[entry.getString("name")] = expected
            if (entry.strings("raw").isNotEmpty()) mistakes += findMistakesOfPreprocessing(entry, expected)
        }
        val found = run(feeds)
        for (entry in expectedOutputs) {
            val name = entry.getString("name")
            val differentRatio = entry.getDouble("different_ratio")
            val isShare = differentRatio > 0 // whole numbers: a share of them may differ
            val expected = readArray(entry).numbers
            val numbers = found.getValue(name).numbers
            val apart = if (isShare) differentShare(numbers, expected) else difference(numbers, expected, false)
            val allowed = if (isShare) differentRatio else entry.getDouble("tolerance")
            if (!(apart <= allowed))
                mistakes += "output '$name' is off by ${short(apart)}; ${short(allowed)} is allowed"
        }
        return mistakes + findWrongClasses(found) + findWrongBoxes(found)
    }

    private fun findMistakesOfPreprocessing(entry: JSONObject, expected: Values): List<String> {
        val name = entry.getString("name")
        val tensor = inputs.first { it.getString("name") == name }
        val samples = entry.strings("raw").map { makeInput(read(it), tensor).numbers }
        val isResized = entry.getString("role") == "resized"
        val apart = difference(samples.reduce { whole, one -> whole + one }, expected.numbers, isResized)
        val allowed = entry.getDouble("tolerance")
        if (apart <= allowed) return emptyList()
        val what = if (isResized) "resizing" else "preprocessing"
        return listOf("$what of '$name' is off by ${short(apart)}; ${short(allowed)} is allowed")
    }

    private fun findWrongBoxes(found: Map<String, Values>): List<String> {
        val maps = boxMaps ?: return emptyList()
        val answers = manifest.objects("answers").filter { !it.isNull("box") }
        return answers.groupBy { it.getInt("sample") }.flatMap { (sample, right) ->
            compareBoxes(sample, right, readBoxes(maps, labels, found, sample))
        }
    }

    private fun findWrongClasses(found: Map<String, Values>): List<String> =
        manifest.objects("answers").filter { it.isNull("box") }.mapNotNull { answer ->
            val sample = answer.getInt("sample")
            val classIndex = answer.getInt("class_index")
            val label = if (answer.isNull("label")) null else answer.getString("label")
            val scores = found.getValue(answer.getString("output")).sample(sample)
            val index = scores.indices.maxByOrNull { scores[it] }
            val isRight = index == classIndex && (label == null || labels.getOrNull(index) == label)
            val named = index?.let { labels.getOrNull(it) } ?: index
            if (isRight) null else "sample $sample is '${label ?: classIndex}', not '$named'"
        }

    /** Says in words what the self-test has found. */
    fun verdict(mistakes: List<String>): String = when {
        mistakes.isNotEmpty() -> mistakes.joinToString("\n") { "self-test: $it" }
        golden.isEmpty() -> "self-test: this bundle has no golden files"
        else -> "self-test: passed"
    }

    /** Returns the model's answer for the content of a file, as text; that of a model with states is after the end. */
    fun answer(file: ByteArray): String {
        val (others, states) = inputs.partition { it.nextValue() == null }
        val tensor = others.singleOrNull()
            ?: throw SampleError(
                "The model takes several inputs: make them as manifest.json says, and call session.run."
            )
        val feeds = states.associateTo(mutableMapOf<String, Values>()) { it.getString("name") to firstState(it) }
        var found = emptyMap<String, Values>()
        for (chunk in if (states.isEmpty()) listOf(makeInput(file, tensor)) else makeChunks(file, tensor)) {
            feeds[tensor.getString("name")] = makeBatch(chunk, tensor)
            found = run(feeds)
            states.forEach { feeds[it.getString("name")] = found.getValue(it.getString("next_value")) }
        }
        val leftOut = states.map { it.nextValue() } + listOf(boxMaps?.getString("heatmap"), boxMaps?.getString("sides"))
        val texts = listOf(describe(found.filterKeys { it !in leftOut }), describeBoxes(found, tensor, file))
        return texts.filter { it.isNotEmpty() }.joinToString("\n")
    }

    private fun describeBoxes(found: Map<String, Values>, tensor: JSONObject, file: ByteArray): String {
        val maps = boxMaps ?: return ""
        val size = sizeOf(file)
        val fit = fitOf(size, tensor.getJSONObject("preprocessing"))
        val boxes = readBoxes(maps, labels, found).map { toImage(it, size, fit) }
        return linesOf(boxes, maps.getDouble("min_score"))
    }

    /** Returns a file as the inputs of a model with states: a sound in chunks, an image as one frame. */
    private fun makeChunks(file: ByteArray, tensor: JSONObject): List<Values> {
        val how = tensor.optJSONObject("preprocessing")
        if (how == null || how.getString("kind") != "sound") return listOf(makeInput(file, tensor))
        val length = chunkLength(tensor, how)
        val whole = prepareSound(file, asWhole(how), tensor.getString("dtype"), tensor.getJSONArray("shape").length())
        return cutSound(whole, length)
    }

    /** Repeats a sample if the batch of the model is fixed. */
    private fun makeBatch(one: Values, tensor: JSONObject): Values {
        val batch = tensor.getJSONArray("shape").opt(0) as? Int ?: 1
        val bytes = ByteArray(batch * one.bytes.size) { one.bytes[it % one.bytes.size] }
        return Values(one.dtype, one.shape.copyOf().also { it[0] = batch.toLong() }, bytes)
    }

    /** Returns a file's content as the model's input, a batch of one sample. */
    private fun makeInput(file: ByteArray, tensor: JSONObject): Values {
        val dtype = tensor.getString("dtype")
        val how = tensor.optJSONObject("preprocessing") ?: throw SampleError(
            "manifest.json has no preprocessing for '${tensor.getString("name")}', so no file can be its input."
        )
        return when (val kind = how.getString("kind")) {
            "image" -> prepareImage(decodeImage(file, how.getString("color")), how, dtype)
            "sound" -> prepareSound(file, how, dtype, tensor.getJSONArray("shape").length())
            else -> throw unknownWord("kind", kind)
        }
    }

    private fun readArray(entry: JSONObject): Values {
        val shape = entry.getJSONArray("shape").let { sizes -> LongArray(sizes.length()) { sizes.getLong(it) } }
        return Values(entry.getString("dtype"), shape, read(entry.getString("file")))
    }

    private fun run(feeds: Map<String, Values>): Map<String, Values> {
        val tensors = mutableMapOf<String, OnnxTensor>()
        try {
            feeds.mapValuesTo(tensors) { (name, values) -> makeTensor(environment, name, values) }
            session.run(tensors).use { result ->
                return outputs.associate { output ->
                    val name = output.getString("name")
                    name to readTensor(name, result.get(name).orElse(null), output.getString("dtype"))
                }
            }
        } finally {
            tensors.values.forEach { it.close() }
        }
    }

    /** Returns the best classes of outputs with scores, the shares of the classes of maps, and the form of others. */
    private fun describe(found: Map<String, Values>): String = outputs.mapNotNull { output ->
        val values = found[output.getString("name")] ?: return@mapNotNull null
        if (!output.isNull("class_axis") && values.shape.size > 2) {
            val map = classMap(values, output.getInt("class_axis"))
            return@mapNotNull "${output.getString("name")}: class map of ${map.size}\n${describeMap(map, labels)}"
        }
        val isOfClasses = values.shape.size == 2 && output.optInt("class_axis") in listOf(1, -1)
        if (!isOfClasses) return@mapNotNull "${output.getString("name")}: ${values.dtype} ${values.shape.asList()}"
        val scores = values.sample(0)
        val best = scores.indices.sortedByDescending { scores[it] }.take(SHOWN_CLASSES)
        best.joinToString("\n") { "${labels.getOrNull(it) ?: it}: ${String.format(Locale.ROOT, "%.4g", scores[it])}" }
    }.joinToString("\n")
}

/** Returns an error for a word of manifest.json that these files do not know. */
internal fun unknownWord(field: String, word: String) =
    SampleError("manifest.json has '$word' as $field: use the sample of the same bundle, which knows it.")

private fun short(number: Double) = String.format(Locale.ROOT, "%.3g", number)

/** Returns the largest absolute difference, or the mean one; infinite if one cannot be said. */
private fun difference(found: DoubleArray, expected: DoubleArray, mean: Boolean): Double {
    if (found.size != expected.size) return Double.POSITIVE_INFINITY
    var largest = 0.0
    var sum = 0.0
    for (i in found.indices) {
        val apart = if (found[i] == expected[i]) 0.0 else abs(found[i] - expected[i])
        if (apart.isNaN()) return Double.POSITIVE_INFINITY
        largest = max(largest, apart)
        sum += apart
    }
    return if (mean) sum / max(1, found.size) else largest
}

/** Returns the share of numbers that differ. */
private fun differentShare(found: DoubleArray, expected: DoubleArray): Double {
    if (found.size != expected.size) return 1.0
    return found.indices.count { found[it] != expected[it] }.toDouble() / max(1, found.size)
}

internal fun JSONObject.objects(name: String): List<JSONObject> =
    getJSONArray(name).let { array -> List(array.length()) { array.getJSONObject(it) } }

internal fun JSONObject.strings(name: String): List<String> =
    getJSONArray(name).let { array -> List(array.length()) { array.getString(it) } }

internal fun JSONObject.numbers(name: String): DoubleArray =
    getJSONArray(name).let { array -> DoubleArray(array.length()) { array.getDouble(it) } }

internal fun JSONObject.intOrNull(name: String): Int? = if (isNull(name)) null else getInt(name)
