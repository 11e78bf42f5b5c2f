#include "tokenizer.hpp"

#include "error.hpp"

namespace specplug::native {

Tokenizer::Tokenizer(std::string_view) { fail(SPECPLUG_ERROR_UNSUPPORTED, "not yet"); }
std::vector<std::int64_t> Tokenizer::encode(std::string_view, bool) const { return {}; }
std::string_view Tokenizer::bytes(std::int64_t) const { return {}; }
std::string Tokenizer::decode(const std::vector<std::int64_t>&) const { return {}; }
std::string repaired(std::string_view bytes) { return std::string(bytes); }

}  // namespace specplug::native
