#include "own_shared.h"

#include <elf.h>
#include <link.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace emulation {
namespace {

struct Symbol {
  std::string name;
  int kind;
  uint64_t value, size;
};

std::vector<Symbol> symbols_of_program() {
  std::ifstream file("/proc/self/exe", std::ios::binary);
  const std::string content{std::istreambuf_iterator<char>(file), {}};
  const auto at = [&](uint64_t offset, auto& into) {
    if (offset + sizeof into > content.size()) throw std::runtime_error("the program ends early");
    std::memcpy(&into, content.data() + offset, sizeof into);
  };
  ElfW(Ehdr) head;
  at(0, head);
  std::vector<Symbol> symbols;
  for (int s = 0; s < head.e_shnum; ++s) {
    ElfW(Shdr) table, names;
    at(head.e_shoff + s * sizeof table, table);
    if (table.sh_type != SHT_SYMTAB) continue;
    at(head.e_shoff + table.sh_link * sizeof names, names);
    for (uint64_t offset = 0; offset < table.sh_size; offset += sizeof(ElfW(Sym))) {
      ElfW(Sym) symbol;
      at(table.sh_offset + offset, symbol);
      symbols.push_back({content.c_str() + names.sh_offset + symbol.st_name,
                         ELF64_ST_TYPE(symbol.st_info), symbol.st_value, symbol.st_size});
    }
  }
  if (symbols.empty()) throw std::runtime_error("the program has no symbols");
  return symbols;
}

uint64_t where_program_lies() {
  uint64_t base = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* program, size_t, void* base) {
        *static_cast<uint64_t*>(base) = program->dlpi_addr;
        return 1;  // the program comes first
      },
      &base);
  return base;
}

int64_t count(const void* kernel) {
  static const std::vector<Symbol> symbols = symbols_of_program();
  const uint64_t place = reinterpret_cast<uint64_t>(kernel) - where_program_lies();
  int64_t bytes = -1;
  for (const Symbol& function : symbols) {
    if (function.kind != STT_FUNC || function.value != place) continue;
    // What `_Zf` declares is called `_ZZfE` and its own name.
    const std::string declared = "_ZZ" + function.name.substr(2) + "E";
    bytes = 0;
    for (const Symbol& one : symbols) {
      if (one.kind == STT_TLS && one.name.compare(0, declared.size(), declared) == 0)
        bytes += static_cast<int64_t>((one.size + 15) / 16 * 16);
    }
    break;
  }
  if (bytes < 0) throw std::runtime_error("no symbol of the program is this kernel");
  return bytes;
}

}  // namespace

int64_t own_shared(const void* kernel) {
  static std::map<const void*, int64_t> known;
  const auto found = known.find(kernel);
  return found != known.end() ? found->second : known[kernel] = count(kernel);
}

}  // namespace emulation
