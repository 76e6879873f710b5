// What the loss changes by, to first order, when a channel stands at a place of the order that
// masks follow: maskgen/transform/ordered_linear.py says how, and has the same function in torch.
#pragma once

#include "common/lanes.h"
#include "kernels.h"

namespace twofour::learning {
namespace {

struct Rivals {
  float score[largest_block];
  float slope[largest_block];
};

// For every place of a group of m: the n-th of the other places by score, ties to the lowest place.
inline void find_rivals(const float* scores, const float* slopes, const std::int64_t* places,
                        Pattern pattern, int first, Rivals& rivals) {
  int best[largest_block + 1];  // places of the n + 1 largest, in descending order
  const int wanted = pattern.n + 1;
  int count = 0;
  for (int place = first; place < first + pattern.m; ++place) {
    const float score = scores[places[place]];
    int at = count < wanted ? count++ : wanted;
    for (; at > 0 && scores[places[best[at - 1]]] < score; --at) {
      if (at < wanted) best[at] = best[at - 1];
    }
    if (at < wanted) best[at] = place;
  }
  const std::int64_t last = places[best[pattern.n - 1]], next = places[best[pattern.n]];
  for (int place = first; place < first + pattern.m; ++place) {
    rivals.score[place] = scores[last];
    rivals.slope[place] = slopes[last];
  }
  for (int k = 0; k < pattern.n; ++k) {  // those that are kept: without them one more is
    rivals.score[best[k]] = scores[next];
    rivals.slope[best[k]] = slopes[next];
  }
}

// One block of channels: adds over rows; found is (size, size), channel by place.
inline void order_gradient_block(const Blocks& blocks, std::int64_t block, Pattern pattern,
                                 float* found) {
  const int size = static_cast<int>(blocks.size);
  for (int i = 0; i < size * size; ++i) found[i] = 0.0f;
  const std::int64_t* places = blocks.places + block * size;
  Rivals rivals;
  for (std::int64_t row = 0; row < blocks.rows; ++row) {
    const std::int64_t at = (block * blocks.rows + row) * size;
    const float *scores = blocks.scores + at, *slopes = blocks.slopes + at;
    for (int first = 0; first < size; first += pattern.m) {
      find_rivals(scores, slopes, places, pattern, first, rivals);
    }
    for (int channel = 0; channel < size; ++channel) {
      float* out = found + channel * size;
      const Floats score = splat(scores[channel]), slope = splat(slopes[channel]);
      for (int place = 0; place < size; place += lanes) {
        const int left = size - place < lanes ? size - place : lanes;
        const Floats gain = slope - load(rivals.slope + place, left);
        const Floats kept = score > load(rivals.score + place, left) ? gain : Floats{};
        store(out + place, load(out + place, left) + kept, left);
      }
    }
  }
}

}  // namespace
}  // namespace twofour::learning
