#include "tokenizer.hpp"

#include <algorithm>
#include <queue>

#include "error.hpp"
#include "unicode.hpp"

namespace specplug::native {
namespace {

constexpr std::string_view kName = "tokenizer.json";
constexpr std::int64_t kGone = -1;  // in place of an id
constexpr std::int64_t kMostIds = std::int64_t{1} << 21;

template <typename Type>
const Type& need(const Json& json, std::string_view name) {
  const auto* found = json[name].as<Type>();
  if (!found) damaged(kName, " is damaged at ", name);
  return *found;
}

bool truthy(const Json& json) {
  const auto* flag = json.as<bool>();
  const auto* text = json.as<std::string>();
  return (flag && *flag) || (text && !text->empty());
}

std::string type_of(const Json& json) {
  const auto* type = json["type"].as<std::string>();
  return type ? *type : "";
}

// GPT-2's letters for bytes: those that can be seen stand for themselves, the others follow 255.
struct Letters {
  char32_t letter[256];
  std::unordered_map<char32_t, unsigned char> byte;

  Letters() {
    char32_t next = 256;
    for (unsigned b = 0; b < 256; ++b) {
      const bool seen = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      letter[b] = seen ? b : next++;
      byte[letter[b]] = static_cast<unsigned char>(b);
    }
  }
};

const Letters& letters() {
  static const Letters made;
  return made;
}

// The bytes that a token's letters stand for; its own bytes if one of them stands for none.
std::string bytes_of(const std::string& token) {
  std::string bytes;
  for (std::size_t place = 0; place < token.size();) {
    const auto found = letters().byte.find(next_character(token, place));
    if (found == letters().byte.end()) return token;
    bytes += static_cast<char>(found->second);
  }
  return bytes;
}

std::uint64_t pair_key(std::int64_t left, std::int64_t right) {
  return static_cast<std::uint64_t>(left) << 32 | static_cast<std::uint64_t>(right);
}

}  // namespace

Tokenizer::Tokenizer(std::string_view json) : Tokenizer(Json::parse(json, kName)) {}

Tokenizer::Tokenizer(const Json& json) : pretokenizer_(json["pre_tokenizer"]) {
  check_keys(json, "");
  for (const auto* name : {"normalizer", "decoder", "model"}) check_keys(json[name], name);
  if (!json["normalizer"].null()) {
    if (type_of(json["normalizer"]) != "NFC") not_built_in("normalizer but NFC");
    compose_ = true;
  }
  if (type_of(json["decoder"]) != "ByteLevel") not_built_in("decoder but ByteLevel");
  // Truncation, padding and dropout are of somebody's training: Python turns them off, too.
  read_model(json["model"]);
  read_added(json["added_tokens"]);
  read_template(json["post_processor"]);
}

void Tokenizer::read_model(const Json& model) {
  if (type_of(model) != "BPE") not_built_in("model but BPE");
  for (const auto* name :
       {"continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"}) {
    if (truthy(model[name]) || model[name].as<double>()) not_built_in(name);
  }
  ignore_merges_ = truthy(model["ignore_merges"]);
  std::unordered_map<std::string, std::int64_t> vocabulary;
  for (const auto& [token, value] : need<Json::Object>(model, "vocab")) {
    const auto* id = value.as<std::int64_t>();
    if (!id || *id < 0 || *id >= kMostIds) damaged(kName, " is damaged at vocab: ", token);
    vocabulary[token] = *id;
    set_bytes(*id, token, false);
    if (ignore_merges_) by_bytes_[bytes_of(token)] = *id;
  }
  const auto* unknown_token = model["unk_token"].as<std::string>();
  for (unsigned byte = 0; byte < 256; ++byte) {
    std::string letter;
    append_character(letter, letters().letter[byte]);
    auto found = vocabulary.find(letter);
    if (found == vocabulary.end() && unknown_token) {
      if (truthy(model["fuse_unk"])) not_built_in("unknown tokens that are fused");
      found = vocabulary.find(*unknown_token);
    }
    byte_ids_[byte] = found == vocabulary.end() ? kGone : found->second;
  }
  read_merges(need<Json::Array>(model, "merges"), vocabulary);
}

void Tokenizer::read_merges(const Json::Array& merges,
                            const std::unordered_map<std::string, std::int64_t>& vocabulary) {
  const auto id_of = [&](const std::string& token) {
    const auto found = vocabulary.find(token);
    if (found == vocabulary.end()) damaged(kName, " is damaged: a merge needs the token ", token);
    return found->second;
  };
  std::int64_t rank = 0;
  for (const auto& merge : merges) {
    std::string left;
    std::string right;
    const auto* pair = merge.as<Json::Array>();
    const auto* line = merge.as<std::string>();
    if (pair && pair->size() == 2 && (*pair)[0].as<std::string>() && (*pair)[1].as<std::string>()) {
      left = *(*pair)[0].as<std::string>();
      right = *(*pair)[1].as<std::string>();
    } else if (line && std::count(line->begin(), line->end(), ' ') == 1) {
      left = line->substr(0, line->find(' '));
      right = line->substr(line->find(' ') + 1);
    } else {
      damaged(kName, " is damaged at merge ", rank);
    }
    merges_[pair_key(id_of(left), id_of(right))] = {rank++, id_of(left + right)};
  }
}

void Tokenizer::read_added(const Json& added) {
  const auto* tokens = added.as<Json::Array>();
  for (const auto& token : tokens ? *tokens : Json::Array()) {
    check_keys(token, "added_tokens");
    const auto id = need<std::int64_t>(token, "id");
    const auto& content = need<std::string>(token, "content");
    if (id < 0 || id >= kMostIds || content.empty()) damaged(kName, " is damaged at added_tokens");
    for (const auto* name : {"single_word", "lstrip", "rstrip"}) {
      if (truthy(token[name])) not_built_in(text_of("added token that is ", name));
    }
    set_bytes(id, content, truthy(token["special"]));
    added_.push_back({characters(content), id, truthy(token["normalized"])});
  }
  std::stable_sort(added_.begin(), added_.end(), [](const Added& a, const Added& b) {
    return a.content.size() > b.content.size();
  });
}

void Tokenizer::read_template(const Json& processor) {
  const auto type = type_of(processor);
  check_keys(processor, "post_processor");
  if (processor.null() || type == "ByteLevel") return;
  if (type == "Sequence") {
    for (const auto& one : need<Json::Array>(processor, "processors")) {
      if (type_of(one) == "Sequence") not_built_in("sequence in a sequence");
      read_template(one);
    }
    return;
  }
  if (type != "TemplateProcessing") not_built_in("post_processor but TemplateProcessing and ByteLevel");
  bool text = false;
  for (const auto& piece : need<Json::Array>(processor, "single")) {
    const auto* name = piece["SpecialToken"]["id"].as<std::string>();
    text = text || !name;
    if (!name) continue;
    for (const auto& id : need<Json::Array>(processor["special_tokens"][*name], "ids")) {
      const auto* number = id.as<std::int64_t>();
      if (!number) damaged(kName, " is damaged at special_tokens");
      (text ? after_ : before_).push_back(*number);
    }
  }
}

void Tokenizer::set_bytes(std::int64_t id, const std::string& token, bool special) {
  const auto at = static_cast<std::size_t>(id);
  if (bytes_.size() <= at) bytes_.resize(at + 1);
  bytes_[at] = special ? "" : bytes_of(token);
}

std::vector<std::int64_t> Tokenizer::encode(std::string_view text, bool special_tokens) const {
  Tokens found;
  if (special_tokens) found = before_;
  encode_between(characters(text), false, found);
  if (special_tokens) found.insert(found.end(), after_.begin(), after_.end());
  return found;
}

// The text between added tokens, and these: first those that are found in the text as it is, then
// those that are found in the normalized text.
void Tokenizer::encode_between(const std::u32string& text, bool normalized, Tokens& found) const {
  std::size_t start = 0;
  const auto put = [&](std::size_t end) {
    if (end == start) return;
    const auto part = text.substr(start, end - start);
    if (!normalized) return encode_between(compose_ ? composed(part) : part, true, found);
    for (const auto& piece : pretokenizer_.pieces(part)) encode_piece(piece, found);
  };
  for (std::size_t place = 0; place < text.size();) {
    if (const auto* token = added_at(std::u32string_view(text).substr(place), normalized)) {
      put(place);
      found.push_back(token->id);
      start = place += token->content.size();
    } else {
      ++place;
    }
  }
  put(text.size());
}

const Tokenizer::Added* Tokenizer::added_at(std::u32string_view text, bool normalized) const {
  for (const auto& one : added_) {
    if (one.normalized == normalized && text[0] == one.content[0] &&
        text.substr(0, one.content.size()) == one.content) {
      return &one;
    }
  }
  return nullptr;
}

// Of all neighbours that can be merged the pair that was learnt first, of several the leftmost.
void Tokenizer::encode_piece(const std::string& piece, Tokens& found) const {
  if (ignore_merges_) {
    const auto whole = by_bytes_.find(piece);
    if (whole != by_bytes_.end()) return found.push_back(whole->second);
  }
  struct Symbol {
    std::int64_t id;
    std::size_t before, after;  // neighbours
  };
  struct Candidate {
    std::int64_t rank;
    std::size_t at;
    std::int64_t made;
    bool operator<(const Candidate& other) const {  // the queue's top is the largest
      return rank != other.rank ? rank > other.rank : at > other.at;
    }
  };
  std::vector<Symbol> symbols;
  for (const char byte : piece) {
    const auto place = symbols.size();
    const auto id = byte_ids_[static_cast<unsigned char>(byte)];
    if (id != kGone) symbols.push_back({id, place - 1, place + 1});
  }
  std::priority_queue<Candidate> queue;
  const auto merge_of = [&](std::size_t at) -> const Merge* {
    if (at >= symbols.size() || symbols[at].after >= symbols.size()) return nullptr;
    const auto found_merge = merges_.find(pair_key(symbols[at].id, symbols[symbols[at].after].id));
    return found_merge == merges_.end() ? nullptr : &found_merge->second;
  };
  const auto offer = [&](std::size_t at) {
    if (const auto* merge = merge_of(at)) queue.push({merge->rank, at, merge->made});
  };
  for (std::size_t at = 0; at < symbols.size(); ++at) offer(at);
  while (!queue.empty()) {
    const auto next = queue.top();
    queue.pop();
    auto& left = symbols[next.at];
    if (left.id == kGone) continue;
    const auto* merge = merge_of(next.at);
    if (!merge || merge->rank != next.rank) continue;  // one of the two was merged otherwise
    auto& right = symbols[left.after];
    left.id = next.made;
    right.id = kGone;
    left.after = right.after;
    if (left.after < symbols.size()) symbols[left.after].before = next.at;
    offer(left.before);
    offer(next.at);
  }
  for (const auto& symbol : symbols) {
    if (symbol.id != kGone) found.push_back(symbol.id);
  }
}

std::string_view Tokenizer::bytes(std::int64_t token) const {
  if (token < 0 || token >= static_cast<std::int64_t>(bytes_.size())) return {};
  return bytes_[static_cast<std::size_t>(token)];
}

std::string Tokenizer::decode(const std::vector<std::int64_t>& tokens) const {
  std::string joined;
  for (const auto token : tokens) joined += bytes(token);
  return repaired(joined);
}

std::string repaired(std::string_view bytes) {
  std::string text;
  for (std::size_t place = 0; place < bytes.size();) {
    const auto character = next_character(bytes, place);
    append_character(text, character == kNoCharacter ? U'\uFFFD' : character);
  }
  return text;
}

}  // namespace specplug::native
