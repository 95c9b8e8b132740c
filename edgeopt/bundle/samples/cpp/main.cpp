// Runs the model of this bundle in C++:
//
//     cmake -B build -DONNXRUNTIME_ROOT=FOLDER && cmake --build build      (in samples/cpp; see README.md)
//     build/run              does this machine compute what the build computed?
//     build/run FILE         the model's answer for an image or a .wav (a stream: after its end)
//     build/run FILE MAP.pgm also writes the class map of an image: each pixel is a class number
//
// Everything that is known of the model is in manifest.json; take from these files what your app needs.

#include "model.hpp"

#include <exception>
#include <iostream>
#include <new>
#include <stdexcept>

int main(int count, char** arguments) {
  try {
    Model model = openModel(findBundle(count > 0 ? arguments[0] : ""));
    const std::vector<std::string> mistakes = findMistakes(model);
    for (const std::string& mistake : mistakes) std::cout << "self-test: " << mistake << std::endl;
    if (!mistakes.empty()) return 1;
    const bool isTested = !model.manifest.at("golden").empty();
    std::cout << "self-test: " << (isTested ? "passed" : "this bundle has no golden files") << std::endl;
    if (count > 1) {
      const Bytes file = readFile(arguments[1]);
      const Arrays outputs = answer(model, file);
      std::cout << describe(outputs, model.manifest, file) << std::endl;
      if (count > 2) writeImageMap(arguments[2], outputs, model.manifest);
    }
    return 0;
  } catch (const nlohmann::json::exception& error) {
    std::cerr << "manifest.json is not as this program expects it: " << error.what() << "\n";
  } catch (const std::out_of_range& error) {
    std::cerr << "manifest.json is not as this program expects it: " << error.what() << "\n";
  } catch (const std::length_error&) {
    std::cerr << "The image is too long and narrow to be resized.\n";
  } catch (const std::bad_alloc&) {
    std::cerr << "There is not enough memory for this file.\n";
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
  }
  return 1;
}
