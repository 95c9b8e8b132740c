#include "files.hpp"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <system_error>

namespace fs = std::filesystem;

fs::path findBundle(const std::string& program) {
  for (const fs::path& start : {fs::weakly_canonical(program).parent_path(), fs::current_path()})
    for (fs::path folder = start; ; folder = folder.parent_path()) {
      if (fs::exists(folder / "manifest.json")) return folder;
      if (folder == folder.parent_path()) break;
    }
  throw std::runtime_error("No folder above this program has a manifest.json: start it inside the bundle.");
}

Bytes readFile(const fs::path& path) {
  std::error_code problem;
  const auto size = fs::file_size(path, problem);
  if (problem) throw std::runtime_error(path.string() + " cannot be read: " + problem.message() + ".");
  Bytes bytes(static_cast<std::size_t>(size));
  std::ifstream file(path, std::ios::binary);
  if (!file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size())))
    throw std::runtime_error(path.string() + " cannot be read: " + std::strerror(errno) + ".");
  return bytes;
}

std::uint32_t readNumber(const Bytes& bytes, std::uint64_t at, int count, Endian endian) {
  std::uint32_t number = 0;
  for (int i = 0; i < count; i++) {
    const std::uint64_t place = at + (endian == Endian::big ? i : count - 1 - i);
    number = number << 8 | (place < bytes.size() ? bytes[place] : 0);
  }
  return number;
}

bool hasText(const Bytes& bytes, std::uint64_t at, const std::string& text) {
  return at + text.size() <= bytes.size() && std::memcmp(bytes.data() + at, text.data(), text.size()) == 0;
}
