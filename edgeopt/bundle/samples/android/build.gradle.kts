// What the sample needs in the build.gradle.kts of an app's module.

android {
    defaultConfig {
        minSdk = 26 // android.util.Half; images are decoded without a change of colours since then
    }
}

dependencies {
    implementation("com.microsoft.onnxruntime:onnxruntime-android:1.24.2") // or newer: README.md says how old it may be
    implementation("androidx.activity:activity-ktx:1.9.3")
}
