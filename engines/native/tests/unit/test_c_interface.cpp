// The C interface where no bundle is needed: arguments, sizes, messages.
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <thread>

#include "specplug/specplug.hpp"

namespace {

TEST(CInterface, VersionsAgree) {
  EXPECT_EQ(specplug_abi_version(), SPECPLUG_ABI_VERSION);
  EXPECT_STRNE(specplug_version(), "");
}

TEST(CInterface, NullsAreRefused) {
  specplug_model* model = nullptr;
  EXPECT_EQ(specplug_model_open(nullptr, nullptr, &model), SPECPLUG_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(specplug_model_open(".", nullptr, nullptr), SPECPLUG_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(specplug_decoder_create(nullptr, nullptr, nullptr), SPECPLUG_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(specplug_generate(nullptr, nullptr, 0, nullptr), SPECPLUG_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(specplug_encode(nullptr, "", 0, 0, nullptr, nullptr), SPECPLUG_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(specplug_decoder_get_stats(nullptr, nullptr), SPECPLUG_ERROR_INVALID_ARGUMENT);
  specplug_model_close(nullptr);
  specplug_decoder_destroy(nullptr);
  specplug_decoder_cancel(nullptr);
  specplug_free(nullptr);
}

TEST(CInterface, OptionsAreToldApartBySize) {
  specplug_model* model = nullptr;
  specplug_model_options options;
  specplug_model_options_init(&options);
  options.size = 3;
  EXPECT_EQ(specplug_model_open(".", &options, &model), SPECPLUG_ERROR_INVALID_ARGUMENT);
  options.size = sizeof(size_t) + sizeof(int32_t);  // an older header's: the rest is default
  EXPECT_EQ(specplug_model_open("/nowhere", &options, &model), SPECPLUG_ERROR_BUNDLE);
  EXPECT_EQ(model, nullptr);
}

TEST(CInterface, MessagesAreOfTheThread) {
  specplug_model* model = nullptr;
  specplug_model_open("/nowhere", nullptr, &model);
  const std::string here = specplug_error_message();
  EXPECT_NE(here.find("/nowhere"), std::string::npos);
  std::thread([] {
    EXPECT_STREQ(specplug_error_message(), "");
    specplug_model* other = nullptr;
    specplug_model_open("/elsewhere", nullptr, &other);
  }).join();
  EXPECT_EQ(specplug_error_message(), here);
}

TEST(Wrapper, ThrowsWhatWentWrong) {
  try {
    const specplug::Model model("/nowhere");
    FAIL();
  } catch (const specplug::Error& error) {
    EXPECT_EQ(error.status(), SPECPLUG_ERROR_BUNDLE);
    EXPECT_NE(std::strstr(error.what(), "/nowhere"), nullptr);
  }
  static_assert(std::is_nothrow_move_constructible_v<specplug::Decoder>);
  static_assert(!std::is_copy_constructible_v<specplug::Model>);
}

}  // namespace
