#include "manifest.hpp"

#include <algorithm>
#include <limits>
#include <optional>
#include <unordered_map>

#include "error.hpp"
#include "fields.hpp"

namespace specplug::native {
namespace {

constexpr std::string_view kName = "specplug.json";
constexpr std::int64_t kMostCount = std::int64_t{1} << 31;
constexpr std::int64_t kMostOfCache = 1 << 16;  // layers, heads, and values of a head
constexpr double kTreeTolerance = 1e-3;  // of a logit
constexpr double kAny = -std::numeric_limits<double>::infinity();

std::string in_small_letters(std::string_view text) {  // of ASCII
  std::string made(text);
  for (auto& c : made) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return made;
}

// Whether Windows takes a name for a device, whatever suffix follows: con, prn, aux, nul, com1….
bool names_device(std::string_view part) {
  auto stem = in_small_letters(part.substr(0, part.find('.')));
  stem.erase(stem.find_last_not_of(' ') + 1);
  if (stem == "con" || stem == "prn" || stem == "aux" || stem == "nul") return true;
  return stem.size() == 4 && (stem.compare(0, 3, "com") == 0 || stem.compare(0, 3, "lpt") == 0) &&
         stem[3] >= '1' && stem[3] <= '9';
}

// Whether a part of a path is the name of a file or folder on every system, and nothing else.
bool plain(std::string_view part) {
  const auto special = [](char c) {
    const auto code = static_cast<unsigned char>(c);
    return code < 32 || code == 127 || std::string_view(R"(\:*?"<>|)").find(c) != std::string::npos;
  };
  return !part.empty() && part.back() != '.' && part.back() != ' ' &&
         std::none_of(part.begin(), part.end(), special) && !names_device(part);
}

// A relative path that stays inside the bundle, as far as its text tells.
bool inside(std::string_view path) {
  for (std::size_t start = 0; start <= path.size();) {
    const auto end = std::min(path.find('/', start), path.size());
    if (!plain(path.substr(start, end - start))) return false;
    start = end + 1;
  }
  return true;
}

File parse_file(Fields fields) {
  File file{fields.text("path"), fields.integer("bytes", 0, INT64_MAX), fields.sha256("sha256")};
  if (!inside(file.path)) fields.wrong("path", "a relative path inside the bundle is needed");
  fields.done();
  return file;
}

CacheLayout parse_cache(Fields fields) {
  CacheLayout cache{fields.integer("layers", 1, kMostOfCache),
                    fields.integer("heads", 1, kMostOfCache),
                    fields.integer("head_size", 1, kMostOfCache),
                    fields.one_of("dtype", {"float32", "float16", "bfloat16"})};
  if (fields.find("spare")) fields.integer("spare", 0, 16);
  fields.done();
  return cache;
}

// Fields that tell people where a component comes from, and the loop nothing.
void check_origin(Fields& fields) {
  if (fields.find("keep_fp32")) fields.text("keep_fp32", 1000);
  if (const auto* again = fields.find("rounded_again")) {
    const auto* types = again->as<Json::Object>();
    if (!types) fields.wrong("rounded_again", "an object is needed");
    Fields counts(*again, kName, fields.path("rounded_again"));
    for (const auto& [type, count] : *types) counts.integer(type, 1, kMostCount);
  }
  auto parity = fields.object("parity");
  for (const auto* name : {"prefill", "verification", "rollback"}) parity.number(name, kAny);
  parity.done();
  if (fields.find("quality")) {
    auto quality = fields.object("quality");
    quality.integer("tokens", 1, kMostCount);
    if (quality.find("text_sha256")) quality.sha256("text_sha256");
    for (const auto* name : {"top1_agreement", "mean_kl", "perplexity", "source_perplexity"}) {
      quality.number(name, kAny);
    }
    quality.done();
  }
  auto provenance = fields.object("provenance");
  provenance.text("source");
  for (const auto* name : {"revision", "licence", "date"}) {
    if (provenance.find(name)) provenance.text(name);
  }
  for (const auto* name : {"sha256", "tools"}) {
    if (!provenance.get(name).as<Json::Object>()) provenance.wrong(name, "an object is needed");
  }
  for (const auto& [name, digest] : *provenance.get("sha256").as<Json::Object>()) {
    if (!inside(name)) {
      provenance.wrong("sha256", text_of("a relative path inside the bundle is needed, not ",
                                         in_quotes(name)));
    }
  }
  provenance.done();
}

// How a draft's layers were chosen, which tells people where they come from.
void check_chosen(Fields chosen) {
  for (const auto* name : {"prompts", "answer_tokens", "tried", "draft_tokens"}) {
    chosen.integer(name, 1, kMostCount);
  }
  chosen.sha256("prompts_sha256");
  chosen.integer("seed", 0, INT64_MAX);
  chosen.array("chances", 1);
  for (const auto* name : {"tokens_per_second", "plain_tokens_per_second"}) chosen.number(name, 0);
  chosen.text("machine", 1000);
  chosen.done();
}

// Hidden states that a target gives to a head, which this runtime does not run.
void check_hidden(Fields hidden) {
  hidden.integers("layers", 0);
  hidden.integer("size", 1, kMostCount);
  hidden.done();
}

// The file of its vocabulary, if it names one.
std::optional<std::string> check_head(Fields head) {
  std::optional<std::string> vocabulary;
  head.one_of("kind", {"eagle3", "dflash"});
  for (const auto* name : {"features", "hidden_size", "input_vocab_size"}) {
    head.integer(name, 1, kMostCount);
  }
  if (head.find("vocabulary")) vocabulary = head.text("vocabulary");
  if (head.find("block")) {
    auto block = head.object("block");
    block.integer("size", 2, 64);
    block.integer("mask_token", 0, kMostCount);
    block.integer("first_guess", 0, 1);
    block.done();
  }
  head.done();
  return vocabulary;
}

TokenizerPart parse_tokenizer_part(Fields fields) {
  TokenizerPart part;
  part.file = parse_file(fields.object("file"));
  fields.sha256("vocabulary_sha256");
  part.stop_token_ids = fields.integers("stop_token_ids", INT64_MIN);
  if (!fields.get("special_tokens").as<Json::Object>()) {
    fields.wrong("special_tokens", "an object is needed");
  }
  if (fields.find("chat_template")) part.chat_template = fields.text("chat_template");
  fields.done();
  return part;
}

TokenizerPart parse_own_tokenizer(Fields own) {
  auto part = parse_tokenizer_part(own.object("tokenizer"));
  own.one_of("translation", {"intersection", "reencoding"});
  own.integer("shared_tokens", 0, INT64_MAX);
  own.number("agreement", 0);
  own.done();
  return part;
}

Component parse_component(Fields fields) {
  Component made;
  made.engine = fields.find("engine") ? fields.text("engine", 100) : "onnxruntime";
  made.dialect =
      fields.find("dialect") ? fields.one_of("dialect", {"ort", "standard", "concat"}) : "ort";
  fields.text("architecture");
  made.precision = fields.one_of("precision",
                                 {"fp32", "fp16", "bf16", "w8a8", "int8", "int4", "gguf"});
  fields.integer("parameters", 1, INT64_MAX);
  made.graph = fields.text("graph");
  const auto& files = fields.array("files", 1);
  for (std::size_t i = 0; i < files.size(); ++i) {
    made.files.push_back(
        parse_file({files[i], kName, text_of(fields.path("files"), ".", i)}));
  }
  std::vector<std::optional<std::string>> named{made.graph};
  if (fields.find("plans")) {  // TensorRT's: not for this engine
    for (const auto& plan : fields.array("plans")) {
      named.emplace_back(Fields(plan, kName, fields.path("plans")).text("path"));
    }
  }
  if (fields.find("continuations")) made.continuations = fields.text("continuations");
  made.vocab_size = fields.integer("vocab_size", 1, kMostCount);
  made.max_length = fields.integer("max_length", 1, kMostCount);
  made.min_width = fields.integer("min_width", 1, 16);
  if (made.min_width > made.max_length) {
    fields.wrong("min_width", text_of("at most max_length ", made.max_length, " is needed"));
  }
  if (fields.find("layers")) made.layers = fields.integers("layers", 0);
  if (fields.find("chosen")) check_chosen(fields.object("chosen"));
  if (fields.find("hidden")) check_hidden(fields.object("hidden"));
  made.is_head = fields.find("head") != nullptr;
  if (made.is_head) named.push_back(check_head(fields.object("head")));
  if (fields.find("own_tokenizer")) {
    made.own_tokenizer = parse_own_tokenizer(fields.object("own_tokenizer"));
  }
  if (fields.find("tree_difference")) made.tree_difference = fields.number("tree_difference", 0);
  made.cache = parse_cache(fields.object("cache"));
  check_origin(fields);
  fields.done();
  named.push_back(made.continuations);
  for (const auto& path : named) {
    const auto is_it = [&](const File& file) { return file.path == *path; };
    if (path && std::none_of(made.files.begin(), made.files.end(), is_it)) {
      damaged(kName, " is damaged: ", in_quotes(*path), " is not among the component's files");
    }
  }
  return made;
}

void check_distinct(const Manifest& made) {
  std::unordered_map<std::string, const File*> known;  // by path, where case does not count
  for (const auto* file : made.all_files()) {
    const auto* other = known.emplace(in_small_letters(file->path), file).first->second;
    if (file->path != other->path) {
      damaged(kName, " is damaged: ", in_quotes(file->path),
              " is another file's name where case does not count");
    }
    if (file->bytes != other->bytes || file->sha256 != other->sha256) {
      damaged(kName, " is damaged: ", in_quotes(file->path), " is listed with two sizes or hashes");
    }
  }
}

void check_stops(const std::vector<std::int64_t>& tokens, std::int64_t vocab) {
  for (const auto token : tokens) {
    if (token < 0 || token >= vocab) {
      damaged(kName, " is damaged: stop token ", token, " is not in [0, ", vocab, ")");
    }
  }
}

void check_together(const Manifest& made) {
  check_distinct(made);
  check_stops(made.stop_token_ids, made.target.vocab_size);
  if (made.tokenizer) check_stops(made.tokenizer->stop_token_ids, made.target.vocab_size);
  if (made.draft && made.draft->own_tokenizer) {
    check_stops(made.draft->own_tokenizer->stop_token_ids, made.draft->vocab_size);
  }
  if (made.target.layers) damaged(kName, " is damaged: the target's layers are its own");
  if (made.target.own_tokenizer) damaged(kName, " is damaged: the target's tokenizer is the bundle's");
  if (!made.draft) return;
  if (made.draft->own_tokenizer && (!made.tokenizer || made.draft->is_head || made.draft->layers)) {
    damaged(kName, " is damaged: a tokenizer of the draft's own needs one of the target's, and a "
            "draft that is no part of it");
  }
  if (!made.tokenizer && !made.draft->is_head && made.draft->vocab_size != made.target.vocab_size) {
    damaged(kName, " is damaged: draft vocabulary ", made.draft->vocab_size,
            " != target vocabulary ", made.target.vocab_size,
            ": export a draft with the target's tokenizer");
  }
  const auto& layers = made.draft->layers;
  if (layers && (static_cast<std::int64_t>(layers->size()) != made.draft->cache.layers ||
                 *std::max_element(layers->begin(), layers->end()) >= made.target.cache.layers)) {
    damaged(kName, " is damaged: the draft's layers are not of the target's");
  }
  if (layers && made.draft->max_length > made.target.max_length) {
    damaged(kName, " is damaged: the draft is a part of the target, whose cache it may share, and ",
            "its max_length ", made.draft->max_length, " is beyond the target's ",
            made.target.max_length);
  }
}

}  // namespace

bool Component::exact_trees() const {
  return (precision == "fp32" || precision == "fp16" || precision == "bf16") && tree_difference &&
         *tree_difference <= kTreeTolerance;
}

std::vector<const File*> Manifest::all_files() const {
  std::vector<const File*> found;
  for (const auto* component : {&target, draft ? &*draft : nullptr}) {
    if (!component) continue;
    for (const auto& file : component->files) {
      const auto same = [&](const File* known) {  // a draft may share the target's
        return known->path == file.path && known->bytes == file.bytes &&
               known->sha256 == file.sha256;
      };
      if (std::none_of(found.begin(), found.end(), same)) found.push_back(&file);
    }
  }
  if (tokenizer) found.push_back(&tokenizer->file);
  if (draft && draft->own_tokenizer) found.push_back(&draft->own_tokenizer->file);
  return found;
}

Manifest parse_manifest(std::string_view text) {
  const auto json = Json::parse(text, kName);
  const auto* version = json["schema_version"].as<std::int64_t>();  // before its fields
  if (!version || *version != 1) {
    damaged(kName, " is not of schema version 1, which this specplug reads: export the model "
            "again, or update specplug");
  }
  Fields fields(json, kName, "");
  fields.integer("schema_version", 1, 1);
  Manifest made;
  made.target = parse_component(fields.object("target"));
  if (fields.find("draft")) made.draft = parse_component(fields.object("draft"));
  if (fields.find("tokenizer")) made.tokenizer = parse_tokenizer_part(fields.object("tokenizer"));
  if (fields.find("stop_token_ids")) {
    made.stop_token_ids = fields.integers("stop_token_ids", INT64_MIN);
  }
  fields.done();
  check_together(made);
  return made;
}

MeasuredCosts parse_tuning(std::string_view text, const TuningKey& key) {
  constexpr std::string_view name = "tuning.json";
  const auto json = Json::parse(text, name);
  Fields fields(json, name, "");
  fields.integer("schema_version", 1, 1);
  MeasuredCosts found;
  for (const auto& record : fields.array("tuned")) {
    Fields tuned(record, name, "tuned");
    TuningKey its{tuned.text("machine"), tuned.text("engine"), tuned.text("device"),
                  std::nullopt, tuned.text("precision"), tuned.text("graph_sha256")};
    if (tuned.find("threads")) its.threads = tuned.integer("threads", 0, kMostCount);
    MeasuredCosts contexts;
    for (const auto& [context, widths] : *tuned.object("contexts").members()) {
      Fields calls(widths, name, text_of("tuned.contexts.", context));
      if (calls.members()->empty()) tuned.wrong("contexts", "seconds of some width are needed");
      for (const auto& [width, seconds] : *calls.members()) {
        const double taken = calls.number(width, 0);
        if (!(taken > 0 && taken < 3600)) calls.wrong(width, "seconds are needed");
        contexts[calls.as_count(context, 0)][calls.as_count(width, 1)] = taken;
      }
    }
    tuned.done();
    if (its.machine == key.machine && its.engine == key.engine && its.device == key.device &&
        its.threads == key.threads && its.precision == key.precision &&
        its.graph_sha256 == key.graph_sha256 && found.empty()) {
      found = std::move(contexts);
    }
  }
  fields.done();
  return found;
}

}  // namespace specplug::native
