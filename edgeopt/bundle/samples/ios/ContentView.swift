// The screen: shows the self-test, then the model's answer for a chosen file.

import SwiftUI
import UniformTypeIdentifiers

private let bundleFolder = "edgeopt" // in the app

/// Runs the model away from the main thread.
actor Runner {
    private var model: Model?

    /// Opens and tests the model; returns the verdict, and whether the model may be used.
    func check() -> (verdict: String, isRight: Bool) {
        do {
            guard let folder = Bundle.main.url(forResource: bundleFolder, withExtension: nil) else {
                throw SampleError("The app has no folder '\(bundleFolder)': add the bundle under this name.")
            }
            let opened = try Model(folder: folder)
            model = opened
            let mistakes = try opened.findMistakes()
            return (opened.verdict(mistakes), mistakes.isEmpty)
        } catch {
            return (error.localizedDescription, false)
        }
    }

    /// Returns the model's answer for a file, or what is wrong with it.
    func answer(for file: URL) -> String {
        let isOpened = file.startAccessingSecurityScopedResource()
        defer { if isOpened { file.stopAccessingSecurityScopedResource() } }
        do {
            return try model?.answer(for: Data(contentsOf: file)) ?? ""
        } catch {
            return error.localizedDescription
        }
    }
}

struct ContentView: View {
    @State private var runner = Runner()
    @State private var verdict = "self-test: running"
    @State private var answer = ""
    @State private var isReady = false
    @State private var isChoosing = false

    var body: some View {
        VStack(alignment: .leading, spacing: 16) {
            Text(verdict)
            Button("Choose a file") { isChoosing = true }
                .disabled(!isReady)
            Text(answer)
        }
        .padding()
        .task {
            let result = await runner.check()
            verdict = result.verdict
            isReady = result.isRight
        }
        .fileImporter(isPresented: $isChoosing, allowedContentTypes: [.image, .wav]) { result in
            switch result {
            case .success(let file):
                Task { answer = await runner.answer(for: file) }
            case .failure(let error):
                answer = error.localizedDescription
            }
        }
    }
}
