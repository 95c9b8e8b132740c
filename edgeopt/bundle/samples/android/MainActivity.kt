// The screen: shows the self-test, then the model's answer for a chosen file.

package edgeopt.sample

import android.net.Uri
import android.os.Bundle
import android.widget.Button
import android.widget.LinearLayout
import android.widget.TextView
import androidx.activity.ComponentActivity
import androidx.activity.result.contract.ActivityResultContracts
import java.io.IOException
import java.util.concurrent.Executors

private const val FOLDER = "edgeopt" // of the app's assets: the bundle

class MainActivity : ComponentActivity() {
    private val worker = Executors.newSingleThreadExecutor() // the model runs here, and never on the main thread
    private var model: Model? = null // of the worker
    private lateinit var check: TextView
    private lateinit var answer: TextView
    private lateinit var button: Button

    private val picker = registerForActivityResult(ActivityResultContracts.GetContent()) { file: Uri? ->
        if (file != null) worker.execute { show(answer, textOf { model?.answer(readFile(file)) ?: "" }) }
    }

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        check = TextView(this).apply { text = "self-test: running" }
        answer = TextView(this)
        button = Button(this).apply {
            text = "Choose a file"
            isEnabled = false
            setOnClickListener { picker.launch("*/*") }
        }
        val column = LinearLayout(this).apply {
            orientation = LinearLayout.VERTICAL
            fitsSystemWindows = true
            listOf(check, button, answer).forEach { addView(it) }
        }
        setContentView(column)
        worker.execute { show(check, textOf { openModel() }) }
    }

    override fun onDestroy() {
        super.onDestroy()
        worker.execute { model?.close() }
        worker.shutdown()
    }

    /** Opens and tests the model; returns the verdict. */
    private fun openModel(): String {
        val opened = Model { readAsset(it) }
        model = opened
        val mistakes = opened.findMistakes()
        if (mistakes.isEmpty()) runOnUiThread { button.isEnabled = true }
        return opened.verdict(mistakes)
    }

    /** Returns a text, or what went wrong in making it. */
    private fun textOf(make: () -> String): String =
        try {
            make()
        } catch (error: Exception) {
            error.message ?: error.toString()
        } catch (error: OutOfMemoryError) {
            "There is too little memory for this file: make it smaller first."
        }

    private fun show(view: TextView, shown: String) = runOnUiThread { view.text = shown }

    private fun readAsset(name: String): ByteArray =
        try {
            assets.open("$FOLDER/$name").use { it.readBytes() }
        } catch (error: IOException) {
            throw SampleError("$name cannot be read: copy the whole bundle into assets/$FOLDER of the app.")
        }

    private fun readFile(file: Uri): ByteArray =
        contentResolver.openInputStream(file)?.use { it.readBytes() } ?: throw SampleError("The file cannot be read.")
}
