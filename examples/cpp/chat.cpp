// A chat in the terminal: chat BUNDLE [MAX_TOKENS]. Ctrl-C ends an answer, Ctrl-D the chat.
#include <csignal>
#include <cstdio>
#include <iostream>
#include <string>

#include <specplug/specplug.hpp>

namespace {

specplug::Decoder* answering = nullptr;

void stop_answer(int) {
  if (answering) answering->cancel();
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 2) {
    std::cerr << "usage: chat BUNDLE [MAX_TOKENS]\n";
    return 2;
  }
  try {
    const specplug::Model model(arguments[1]);
    specplug::Decoder decoder(model);
    answering = &decoder;
    std::signal(SIGINT, stop_answer);

    // Templates are the caller's business. Most small chat models write turns as ChatML.
    const char* jinja = model.info().chat_template;
    const bool chatml = jinja && std::string(jinja).find("<|im_start|>") != std::string::npos;
    std::string conversation;

    specplug::GenerationOptions options;
    options.text = true;
    options.max_tokens = count > 2 ? std::stoll(arguments[2]) : 256;
    options.on_run = [](const specplug::Run& run) { std::cout << run.text << std::flush; };

    for (std::string line; std::cerr << "> ", std::getline(std::cin, line);) {
      conversation += chatml ? "<|im_start|>user\n" + line + "<|im_end|>\n<|im_start|>assistant\n"
                             : line + "\n";
      const auto result = decoder.generate(model.encode(conversation, !chatml), options);
      conversation += model.decode(result.tokens) + (chatml ? "<|im_end|>\n" : "\n");
      const auto& stats = result.stats;
      const double seconds = stats.prefill_seconds + stats.decode_seconds;
      std::cout << std::endl;
      std::fprintf(stderr, "[%.1f tokens/s, %lld of %lld drafted tokens accepted]\n",
                   static_cast<double>(stats.new_tokens) / seconds,
                   static_cast<long long>(stats.accepted), static_cast<long long>(stats.drafted));
    }
  } catch (const std::exception& error) {
    std::cerr << "chat: " << error.what() << '\n';
    return 1;
  }
}
