// Every key of a tokenizer.json that this library reads, or that changes no token; a file with
// another one is refused by its name. docs/INPUTS.md lists them, and a test compares the lists.
#pragma once

#include <string_view>

namespace specplug::native {

constexpr std::string_view kTokenizerKeys[] = {
    "added_tokens",
    "added_tokens.content",
    "added_tokens.id",
    "added_tokens.lstrip",
    "added_tokens.normalized",
    "added_tokens.rstrip",
    "added_tokens.single_word",
    "added_tokens.special",
    "decoder",
    "decoder.add_prefix_space",
    "decoder.trim_offsets",
    "decoder.type",
    "decoder.use_regex",
    "model",
    "model.byte_fallback",
    "model.continuing_subword_prefix",
    "model.dropout",
    "model.end_of_word_suffix",
    "model.fuse_unk",
    "model.ignore_merges",
    "model.merges",
    "model.type",
    "model.unk_token",
    "model.vocab",
    "normalizer",
    "normalizer.type",
    "padding",
    "post_processor",
    "post_processor.add_prefix_space",
    "post_processor.pair",
    "post_processor.processors",
    "post_processor.single",
    "post_processor.special_tokens",
    "post_processor.trim_offsets",
    "post_processor.type",
    "post_processor.use_regex",
    "pre_tokenizer",
    "pre_tokenizer.add_prefix_space",
    "pre_tokenizer.behavior",
    "pre_tokenizer.individual_digits",
    "pre_tokenizer.invert",
    "pre_tokenizer.pattern",
    "pre_tokenizer.pretokenizers",
    "pre_tokenizer.trim_offsets",
    "pre_tokenizer.type",
    "pre_tokenizer.use_regex",
    "truncation",
    "version",
};

}  // namespace specplug::native
