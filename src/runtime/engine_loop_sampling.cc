// What a step's rows are for: the tokens of answers, log-probabilities of prompts, embeddings.
#include <algorithm>
#include <cmath>

#include "runtime/engine_loop_answer.h"
#include "runtime/grammar/matcher.h"

namespace whit {
namespace {

template <typename Tasks>
std::vector<int32_t> rows_of(const Tasks& tasks) {
  std::vector<int32_t> rows;
  for (const auto& task : tasks)
    for (int64_t i = 0; i < task.count; ++i)
      rows.push_back(static_cast<int32_t>(task.first_row + i));
  return rows;
}

}  // namespace

// Adds up the final norm's output over the prompt; its mean, scaled to unit length, is the
// embedding.
void EngineLoop::embed_step(const StepPlan& plan) {
  const int64_t width = executor_.config().hidden_size;
  const auto* weight = final_norm_.data<float>();
  for (size_t c = 0; c < plan.chunks.size(); ++c) {
    const Chunk& chunk = plan.chunks[c];
    Answer& answer = *answers_.at(chunk.sequence->id);
    if (answer.choice) continue;
    const float* hidden = executor_.hidden();
    // After a preemption the prompt begins anew.
    if (chunk.start == 0) std::fill(answer.sum.begin(), answer.sum.end(), 0.0);
    for (int64_t i = 0; i < chunk.count; ++i) {
      const float* row = hidden + (batch_.first_row(c) + i) * width;
      double squares = 0;
      for (int64_t d = 0; d < width; ++d) squares += static_cast<double>(row[d]) * row[d];
      const double scale = 1 / std::sqrt(squares / static_cast<double>(width) + final_norm_eps_);
      for (int64_t d = 0; d < width; ++d) answer.sum[d] += row[d] * scale * weight[d];
    }
    if (!chunk.samples) continue;
    double norm = 0;
    for (const double value : answer.sum) norm += value * value;
    norm = norm > 0 ? 1 / std::sqrt(norm) : 0;
    for (const double value : answer.sum)
      answer.event.embedding.push_back(static_cast<float>(value * norm));
  }
}

// Calls take(choice), which adds tokens to the answer; what it throws ends that answer alone.
template <typename Take>
void EngineLoop::take_tokens(Answer& answer, Take take) {
  try {
    const auto before = std::ssize(answer.choice->output());
    take(*answer.choice);
    const std::vector<int32_t>& output = answer.choice->output();
    answer.sampled.assign(output.begin() + before, output.end());
  } catch (const std::exception& error) {
    answer.fail(error);
  }
}

void EngineLoop::take_likeliest(std::span<const SampleTask> tasks) {
  const std::vector<int32_t> rows = rows_of(tasks);
  std::vector<int32_t> likeliest(rows.size());
  executor_.argmax(rows, likeliest);
  size_t first = 0;
  for (const SampleTask& task : tasks) {
    take_tokens(*task.answer, [&](Choice& choice) {
      choice.take_likeliest(std::span(likeliest).subspan(first, task.count),
                            task.chunk->sequence->draft, task.answer->event);
    });
    first += task.count;
  }
}

void EngineLoop::draw_on_device(std::vector<SampleTask>& tasks) {
  std::vector<SampleTask> drawn, left;
  std::vector<RowDraw> draws;
  for (const SampleTask& task : tasks) {
    if (task.prompt_position >= 0 || task.count > 1 || !task.answer->choice->may_draw_elsewhere()) {
      left.push_back(task);
      continue;
    }
    try {
      draws.push_back(task.answer->choice->next_draw(task.allowed, workspaces_[0]));
      drawn.push_back(task);
    } catch (const std::exception& error) {
      task.answer->fail(error);
    }
  }
  if (!drawn.empty()) {
    std::vector<int32_t> ids(drawn.size());
    executor_.sample(rows_of(drawn), draws, ids);
    for (size_t i = 0; i < drawn.size(); ++i) {
      Answer& answer = *drawn[i].answer;
      if (ids[i] < 0)
        left.push_back(drawn[i]);
      else
        take_tokens(answer, [&](Choice& choice) { choice.take_drawn(ids[i], answer.event); });
    }
  }
  tasks = std::move(left);
}

void EngineLoop::sample_logits(std::span<const SampleTask> tasks) {
  const int64_t vocab = executor_.config().vocab_size;
  std::vector<int64_t> first(1, 0);
  for (const SampleTask& task : tasks) first.push_back(first.back() + task.count);
  const float* logits = executor_.logits(rows_of(tasks));
  const auto serve = [&](size_t t, ChoiceWorkspace& workspace) {
    const SampleTask& task = tasks[t];
    Answer& answer = *task.answer;
    const float* mine = logits + first[t] * vocab;
    const bool starts_answer = task.prompt_position < 0 && answer.choice->output().empty();
    if (!answer.prompt_logits.empty() && (task.prompt_position >= 0 || starts_answer)) {
      const int64_t position =
          starts_answer ? std::ssize(answer.active->request.prompt) - 1 : task.prompt_position;
      std::copy_n(mine, vocab, answer.prompt_logits.begin() + position * vocab);
    }
    if (task.prompt_position >= 0) {
      if (answer.prompt.empty()) return;
      const int32_t token = answer.active->request.prompt[task.prompt_position + 1];
      const double total = log_sum_exp({mine, static_cast<size_t>(vocab)},
                                       answer.active->request.prompt_logprobs, workspace.sampler);
      answer.prompt[task.prompt_position] = {token, static_cast<float>(mine[token] - total),
                                             workspace.sampler.top};
      return;
    }
    take_tokens(answer, [&](Choice& choice) {
      choice.sample(mine, task.count, task.chunk->sequence->draft, task.allowed, workspace,
                    answer.event);
    });
  };
  if (tasks.size() == 1) {
    serve(0, workspaces_[0]);
    return;
  }
  executor_.pool().run([&](const Worker& worker) {
    const Range part = split(std::ssize(tasks), 1, worker);
    for (int64_t t = part.begin; t < part.end; ++t) serve(t, workspaces_[worker.index]);
  });
}

void EngineLoop::sample(std::vector<SampleTask>& tasks) {
  if (executor_.samples()) {
    const bool likeliest = std::all_of(tasks.begin(), tasks.end(), [](const SampleTask& task) {
      return task.prompt_position < 0 && task.answer->choice->takes_likeliest();
    });
    if (likeliest && !tasks.empty()) {
      take_likeliest(tasks);
      tasks.clear();
    } else {
      draw_on_device(tasks);
    }
  }
  if (!tasks.empty()) sample_logits(tasks);
  tasks.clear();
}

void EngineLoop::sample_step(const StepPlan& plan) {
  std::vector<SampleTask> tasks;
  int64_t rows = 0;
  const auto add = [&](const SampleTask& task) {
    if (rows + task.count > executor_.options().max_logit_rows) {
      sample(tasks);
      rows = 0;
    }
    tasks.push_back(task);
    rows += task.count;
  };
  for (size_t c = 0; c < plan.chunks.size(); ++c) {
    const Chunk& chunk = plan.chunks[c];
    Answer& answer = *answers_.at(chunk.sequence->id);
    if (!answer.choice) continue;
    const int64_t base = batch_.first_row(c);
    const int64_t prompt_rows =
        std::min(chunk.start + chunk.count, chunk.sequence->prompt_length() - 1);
    if ((!answer.prompt.empty() || !answer.prompt_logits.empty()) && !answer.begun)
      for (int64_t position = chunk.start; position < prompt_rows; ++position)
        add({&answer, &chunk, base + position - chunk.start, 1, position, {}});
    if (!chunk.samples) continue;
    std::span<const uint64_t> allowed;
    try {
      // One after the other: choices with the same grammar share what it has learnt.
      if (GrammarMatcher* grammar = answer.choice->grammar()) allowed = grammar->allowed();
    } catch (const std::exception& error) {
      answer.fail(error);
      continue;
    }
    add({&answer, &chunk, base + chunk.count - 1 - chunk.drafts, 1 + chunk.drafts, -1, allowed});
  }
  sample(tasks);
}

}  // namespace whit
