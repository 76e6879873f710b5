// The attention part of a step: rotary embedding, the cache, and the softmax over pages.
#include "decoder/run.h"

namespace twofour {

namespace {

Softmax softmax(std::vector<float>& buffer, std::size_t rows) {
  return {buffer.data(), buffer.data() + rows, buffer.data() + 2 * rows};
}

}  // namespace

Rotary Decoder::Run::rotary(std::size_t layer, std::size_t token, const float* norm, const float* x,
                            const float* row, std::size_t width) const {
  Rotary r{};
  r.dim = m_.rotary_dim;
  r.interleaved = m_.blocks.interleaved;
  r.eps = m_.eps;
  r.head_dim = m_.head_dim;
  const bool wide = m_.blocks.wide_head_norms;
  r.norm = norm && wide ? norm + (x - row) : norm;
  r.over = wide ? row : x;
  r.width = wide ? width : m_.head_dim;
  const std::int32_t rope = m_.layers[layer].rope;
  if (rope >= 0) {
    const std::size_t number = token * m_.ropes.size() + static_cast<std::size_t>(rope);
    r.cos = reinterpret_cast<const float*>(d_.rotary_->data()) + number * m_.rotary_dim;
    r.sin = r.cos + m_.rotary_dim / 2;
  }
  return r;
}

std::byte* Decoder::Run::page(std::size_t layer, std::size_t sequence, std::size_t position,
                              std::size_t kv_head) const {
  const auto number =
      static_cast<std::size_t>(in_.pages[sequence * in_.page_stride + position / page_positions]);
  return d_.cache_->data() + number * d_.page_stride_ +
         (layer * m_.kv_heads + kv_head) * head_page_bytes(padded_dim(m_.head_dim));
}

Softmax Decoder::Run::partial(std::size_t number) const {
  const std::size_t group = m_.group();
  float* data = d_.partial_.data() + number * group * (padded_dim(m_.head_dim) + 2);
  return {data, data + group, data + 2 * group};
}

void Decoder::Run::rotate_query(std::size_t layer, std::size_t token, std::size_t head,
                                std::uint16_t* out) {
  const float* row = qkv_ + token * qkv_width_;
  const float* x = row + head * m_.head_dim;
  d_.ops_.rotate(x, rotary(layer, token, m_.layers[layer].q_norm, x, row, m_.q_width()), out);
}

void Decoder::Run::store_key_value(std::size_t layer, std::size_t token, std::size_t kv_head,
                                   Scratch& scratch) {
  const TokenPlace& place = plan_.places[token];
  const float* keys = qkv_ + token * qkv_width_ + m_.q_width();
  const float* row = keys + kv_head * m_.head_dim;
  const float* norm = m_.layers[layer].k_norm;
  d_.ops_.rotate(row, rotary(layer, token, norm, row, keys, m_.kv_width()), scratch.key.data());
  const auto position = static_cast<std::size_t>(place.position);
  const bool last = static_cast<std::size_t>(in_.token_begin[place.sequence + 1]) == token + 1;
  d_.ops_.store_position(scratch.key.data(), row + m_.kv_width(), m_.head_dim,
                         page(layer, place.sequence, position, kv_head), position % page_positions,
                         last);
}

void Decoder::Run::rotate_tokens(std::size_t layer, std::size_t thread, std::size_t count) {
  Scratch& scratch = *d_.scratch_[thread];
  const std::size_t dim = padded_dim(m_.head_dim);
  auto* queries = reinterpret_cast<std::uint16_t*>(d_.query_->data());
  const Range mine = share(plan_.tokens, thread, count);
  for (std::size_t t = mine.begin; t < mine.end; ++t) {
    for (std::size_t head = 0; head < m_.kv_heads; ++head) store_key_value(layer, t, head, scratch);
    // Single tokens rotate their queries where they use them.
    if (plan_.places[t].partial_count > 0) continue;
    for (std::size_t head = 0; head < m_.heads; ++head) {
      rotate_query(layer, t, head, queries + (t * m_.heads + head) * dim);
    }
  }
}

Attend Decoder::Run::attention_of(std::size_t layer, const AttentionItem& item,
                                  Scratch& scratch) const {
  const std::size_t dim = padded_dim(m_.head_dim);
  Attend a{};
  a.q = scratch.query_rows.data();
  a.position = scratch.positions.data();
  a.rows = item.count * m_.group();
  a.pages = in_.pages + item.sequence * in_.page_stride;
  a.cache = d_.cache_->data() + (layer * m_.kv_heads + item.kv_head) * head_page_bytes(dim);
  a.page_stride = d_.page_stride_;
  a.dim = dim;
  a.scale = m_.blocks.attention_scale;
  a.cap = m_.blocks.attention_cap;
  a.window = m_.layers[layer].window;
  return a;
}

void Decoder::Run::attend_single(std::size_t layer, const AttentionItem& item, Scratch& scratch) {
  const std::size_t group = m_.group(), dim = padded_dim(m_.head_dim);
  const TokenPlace& place = plan_.places[item.token];
  const auto position = static_cast<std::size_t>(place.position);
  const bool holds_own = item.end == position + 1;
  // Of the token's spans only the last holds its own position, so this item alone reads the key and
  // the value that it writes here, and a step of single tokens needs no wait between the two.
  if (plan_.single_tokens && holds_own) store_key_value(layer, item.token, item.kv_head, scratch);
  for (std::size_t r = 0; r < group; ++r) {
    rotate_query(layer, item.token, item.kv_head * group + r, scratch.queries.data() + r * dim);
    scratch.query_rows[r] = scratch.queries.data() + r * dim;
    scratch.positions[r] = place.position;
  }
  Attend a = attention_of(layer, item, scratch);
  a.begin = item.begin;
  a.end = item.end;
  d_.ops_.attend(a, partial(item.partial));
}

void Decoder::Run::attend(std::size_t layer, const AttentionItem& item, Scratch& scratch) {
  const std::size_t group = m_.group(), dim = padded_dim(m_.head_dim), rows = item.count * group;
  const auto* queries = reinterpret_cast<const std::uint16_t*>(d_.query_->data());
  for (std::size_t i = 0; i < item.count; ++i) {
    const std::size_t token = item.token + i;
    for (std::size_t g = 0; g < group; ++g) {
      scratch.query_rows[i * group + g] =
          queries + (token * m_.heads + item.kv_head * group + g) * dim;
      scratch.positions[i * group + g] = plan_.places[token].position;
    }
  }
  const Softmax total = softmax(scratch.total, rows), part = softmax(scratch.part, rows);
  for (std::size_t r = 0; r < rows; ++r) total.sum[r] = 0.0f;
  Attend a = attention_of(layer, item, scratch);
  for (std::size_t begin = 0; begin < item.end; begin += span_positions) {
    a.begin = begin;
    a.end = smaller(begin + span_positions, item.end);
    d_.ops_.attend(a, part);
    d_.ops_.merge(rows, dim, part, total);
  }
  for (std::size_t r = 0; r < rows; ++r) {
    const std::size_t token = item.token + r / group, head = item.kv_head * group + r % group;
    d_.ops_.finish(total.acc + r * dim, total.sum[r], m_.head_dim,
                   attention_ + token * m_.q_width() + head * m_.head_dim);
  }
}

// Merges the spans of a single token, all heads, into `row` (q_width values).
void Decoder::Run::collect(std::size_t token, float* row, Scratch& scratch) {
  const TokenPlace& place = plan_.places[token];
  const std::size_t group = m_.group(), dim = padded_dim(m_.head_dim);
  for (std::size_t head = 0; head < m_.kv_heads; ++head) {
    const std::size_t first = place.partial + head * place.partial_count;
    Softmax total = partial(first);
    // Every thread may do this at once when tokens are few: the partial results stay as they are.
    if (place.partial_count > 1) {
      const Softmax own = softmax(scratch.total, group);
      for (std::size_t r = 0; r < group; ++r) own.sum[r] = 0.0f;
      for (std::size_t span = 0; span < place.partial_count; ++span) {
        d_.ops_.merge(group, dim, partial(first + span), own);
      }
      total = own;
    }
    for (std::size_t r = 0; r < group; ++r) {
      d_.ops_.finish(total.acc + r * dim, total.sum[r], m_.head_dim,
                     row + (head * group + r) * m_.head_dim);
    }
  }
}

}  // namespace twofour
