// Column sums of exp(scores) for an attention map that is never written out, one tile of scores in registers at a time.
//
//     out[b, h, j] = sum over i of exp(scale * query[b, h, i] . key[b, h, j] + bias[b, h, j] + logs[b, h, i])
//
// Plain C++17 with the vector extensions of GCC and Clang, independent of torch: native.py compiles it and passes
// addresses and strides. The exponents are at most about 0, because logs contains minus the log-sum-exp of the row, so
// no maximum needs to be subtracted.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <new>
#include <thread>
#include <vector>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

// A tile of scores is `rows` queries by `vectors` vectors of `width` keys. Its accumulators, one vector of keys for each
// of `vectors` and one query fill the registers: 32 of 16 floats, 16 of 8 floats, 32 or 16 of 4 floats.
#if defined(__AVX512F__)
constexpr int width = 16, rows = 6, vectors = 4;
#elif defined(__AVX2__)
constexpr int width = 8, rows = 6, vectors = 2;
#elif defined(__aarch64__)
constexpr int width = 4, rows = 8, vectors = 3;
#else
constexpr int width = 4, rows = 6, vectors = 2;
#endif
constexpr int tile_keys = width * vectors;
// Number of rows whose weights are summed in float32 before they are added to sums in float64: few enough to limit
// rounding errors, and for their packed copy to fit into the first-level cache beside a tile of keys.
constexpr int64_t block_rows = rows * (128 / rows);
// Maximum number of keys of a task: enough to amortise packing the queries, few enough for the second-level cache.
constexpr int64_t chunk_keys = 2048;
constexpr float nothing = -1e29f;  // rows with this value or less are skipped
// Multiplied in float64: rounding the factor would shift all exponents of a row in the same direction.
constexpr double log2e = 1.44269504088896341;

inline float in_bits(double x) { return static_cast<float>(x * log2e); }

using Floats = float __attribute__((vector_size(width * 4)));
using Ints = int32_t __attribute__((vector_size(width * 4)));

struct Call {
  const float *query, *key, *logs, *bias;
  double* out;
  int64_t batch, heads, key_heads, queries, keys, size;
  int64_t query_strides[3], key_strides[3], bias_strides[2];
  double scale;
  int64_t least, most;  // query i sees key j where least <= i - j <= most
};

// 2^x with a relative error below 2e-7, 0 below x = -125 (2e-38), NaN for NaN.
inline Floats exp2_of(Floats x) {
  constexpr float least = -125.0f;
  // The polynomial of degree 5 with value 1 at 0 and the smallest relative error, 9.2e-8, on [-1/2, 1/2].
  constexpr float c0 = 1.0f, c1 = 0.69314698f, c2 = 0.24022242f, c3 = 0.055507338f, c4 = 0.0096715144f,
                  c5 = 0.0013264714f;
#if defined(__AVX512F__)
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const Floats f = x - (Floats)whole;
  const Floats p = ((((c5 * f + c4) * f + c3) * f + c2) * f + c1) * f + c0;
  const __mmask16 counts = _mm512_cmp_ps_mask(x, _mm512_set1_ps(least), _CMP_NLT_UQ);
  return (Floats)_mm512_maskz_scalef_ps(counts, p, whole);
#else
  // Adding 1.5 * 2^23 rounds to an integer, stored in the lowest bits.
  constexpr float magic = 12582912.0f;
  x = x > 128.0f ? Floats{} + 128.0f : x;  // infinity, for which the shift below would overflow into the sign
  const Floats shifted = x + magic;
  const Floats f = x - (shifted - magic);
  const Floats p = ((((c5 * f + c4) * f + c3) * f + c2) * f + c1) * f + c0;
  const Ints powers = (Ints)p + ((Ints)shifted << 23);
  return (Floats)(powers & ~(Ints)(x < least));
#endif
}

// A tile's operands, as `Worker` packs them: query (size, rows), key (size, tile_keys), which queries, the first key.
struct Tile {
  const float *query, *key, *logs;
  const Floats* bias;
  const int32_t* index;
  int32_t first_key;
};

// Adds the weights of one tile to `sums`; `masked` if some of its queries do not see some of its keys.
template <bool masked>
inline __attribute__((always_inline)) void add_tile(const Tile& tile, int64_t size, int32_t least, int32_t most,
                                                    Floats* sums) {
  const float *query = tile.query, *key = tile.key;
  Floats scores[rows][vectors] = {};
  for (int64_t k = 0; k < size; ++k) {
    Floats of_key[vectors];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) std::memcpy(&of_key[v], key + v * width, sizeof(Floats));
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) scores[i][v] += query[i] * of_key[v];
    }
    query += rows;
    key += tile_keys;
  }
#pragma GCC unroll 8
  for (int v = 0; v < vectors; ++v) {
    Ints keys{};
    if (masked) {
      for (int lane = 0; lane < width; ++lane) keys[lane] = tile.first_key + v * width + lane;
    }
    Floats sum = sums[v];
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      Floats weights = exp2_of(scores[i][v] + tile.bias[v] + tile.logs[i]);
      if (masked) {
        const Ints distance = tile.index[i] - keys;
        weights = (Floats)((Ints)weights & ((Ints)(distance >= least) & (Ints)(distance <= most)));
      }
      sum += weights;
    }
    sums[v] = sum;
  }
}

// Floats at an address aligned for vectors.
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : data_(static_cast<float*>(::operator new(static_cast<size_t>(count + 1) * sizeof(float), alignment))) {}
  ~Buffer() { ::operator delete(data_, alignment); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  float* get() { return data_; }

 private:
  static constexpr std::align_val_t alignment{64};
  float* data_;
};

int64_t tiles_of(int64_t keys) { return (keys + tile_keys - 1) / tile_keys; }

// The memory of one thread, and its work on one head and one chunk of keys.
class Worker {
 public:
  Worker(const Call& call, int64_t chunk)
      : call_(call),
        keys_(tiles_of(chunk) * tile_keys * call.size),
        bias_(tiles_of(chunk) * tile_keys),
        queries_(block_rows * call.size),
        logs_(block_rows),
        index_(block_rows),
        sums_(tiles_of(chunk) * tile_keys) {}

  void run(int64_t b, int64_t h, int64_t begin, int64_t end) {
    pack_keys(b, h, begin, end);
    std::fill(sums_.begin(), sums_.end(), 0.0);
    const float* logs = call_.logs + (b * call_.heads + h) * call_.queries;
    const float* query = call_.query + b * call_.query_strides[0] + h * call_.query_strides[1];
    // Queries outside this range see none of the chunk's keys. Blocks begin at the same queries for every chunk, so
    // that rounding does not depend on the chunk.
    const int64_t first = std::max<int64_t>(0, begin + call_.least) / block_rows * block_rows;
    const int64_t last = std::min(call_.queries, end + call_.most);
    for (int64_t block = first; block < last; block += block_rows) {
      int64_t held = 0;
      for (int64_t i = block; i < std::min(block + block_rows, last); ++i) {
        if (logs[i] <= nothing) continue;
        pack_query(query + i * call_.query_strides[2], logs[i], i, held++);
      }
      if (held > 0) add_block(held, begin, end);
    }
    double* out = call_.out + (b * call_.heads + h) * call_.keys;
    std::copy(sums_.begin(), sums_.begin() + (end - begin), out + begin);
  }

 private:
  // Keys as (tile, size, key of the tile), times the scale and log2(e).
  void pack_keys(int64_t b, int64_t h, int64_t begin, int64_t end) {
    const int64_t of_key = h / (call_.heads / call_.key_heads);
    const float* key = call_.key + b * call_.key_strides[0] + of_key * call_.key_strides[1];
    const float* bias = call_.bias ? call_.bias + b * call_.bias_strides[0] + h * call_.bias_strides[1] : nullptr;
    const int64_t padded = tiles_of(end - begin) * tile_keys;
    for (int64_t j = 0; j < padded; ++j) {
      const bool real = begin + j < end;
      const float* from = key + (begin + j) * call_.key_strides[2];
      float* to = keys_.get() + j / tile_keys * tile_keys * call_.size + j % tile_keys;
      for (int64_t k = 0; k < call_.size; ++k) to[k * tile_keys] = real ? in_bits(from[k] * call_.scale) : 0.0f;
      bias_.get()[j] = real && bias ? in_bits(bias[begin + j]) : 0.0f;
    }
  }

  // Queries as (group of rows, size, row of the group).
  void pack_query(const float* from, float log, int64_t i, int64_t place) {
    float* to = queries_.get() + place / rows * rows * call_.size + place % rows;
    for (int64_t k = 0; k < call_.size; ++k) to[k * rows] = from[k];
    logs_.get()[place] = in_bits(log);
    index_[place] = static_cast<int32_t>(i);
  }

  void pad_queries(int64_t held) {
    for (; held % rows != 0; ++held) {
      float* to = queries_.get() + held / rows * rows * call_.size + held % rows;
      for (int64_t k = 0; k < call_.size; ++k) to[k * rows] = 0.0f;
      logs_.get()[held] = 2 * nothing;
      index_[held] = index_[held - 1];
    }
  }

  void add_block(int64_t held, int64_t begin, int64_t end) {
    pad_queries(held);
    const auto least = static_cast<int32_t>(call_.least), most = static_cast<int32_t>(call_.most);
    for (int64_t t = 0; t < tiles_of(end - begin); ++t) {
      const float* key = keys_.get() + t * tile_keys * call_.size;
      const auto* bias = reinterpret_cast<const Floats*>(bias_.get() + t * tile_keys);
      const int64_t low = begin + t * tile_keys, high = low + tile_keys - 1;
      Floats sums[vectors] = {};
      for (int64_t g = 0; g < held; g += rows) {
        const int64_t top = index_[g], bottom = index_[g + rows - 1];  // rows are packed in order
        if (bottom - low < call_.least || top - high > call_.most) continue;
        const Tile tile{queries_.get() + g * call_.size, key,         logs_.get() + g, bias,
                        index_.data() + g,               static_cast<int32_t>(low)};
        if (top - high >= call_.least && bottom - low <= call_.most) {
          add_tile<false>(tile, call_.size, least, most, sums);
        } else {
          add_tile<true>(tile, call_.size, least, most, sums);
        }
      }
      float all[tile_keys];
      std::memcpy(all, sums, sizeof(all));
      for (int j = 0; j < tile_keys; ++j) sums_[t * tile_keys + j] += all[j];
    }
  }

  const Call& call_;
  Buffer keys_, bias_, queries_, logs_;
  std::vector<int32_t> index_;
  std::vector<double> sums_;
};

// The partition of the work: a task is a head and a chunk of its keys.
struct Tasks {
  Tasks(const Call& call, int64_t threads) : chunk(std::min(tiles_of(call.keys) * tile_keys, chunk_keys)) {
    // Smaller chunks if there are too few heads to keep the threads busy. The sums do not depend on them.
    while (threads > 1 && chunk > 4 * tile_keys && call.batch * call.heads * chunks_of(call) < 4 * threads) {
      chunk = tiles_of(chunk / 2) * tile_keys;
    }
    chunks = chunks_of(call);
    count = call.batch * call.heads * chunks;
  }
  int64_t chunks_of(const Call& call) const { return (call.keys + chunk - 1) / chunk; }

  int64_t chunk, chunks, count;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
};

// Runs tasks until none is left, or memory runs out.
void work(const Call& call, Tasks& tasks) noexcept {
  try {
    Worker worker(call, tasks.chunk);
    for (int64_t task = tasks.next++; task < tasks.count; task = tasks.next++) {
      const int64_t head = task / tasks.chunks, begin = task % tasks.chunks * tasks.chunk;
      worker.run(head / call.heads, head % call.heads, begin, std::min(begin + tasks.chunk, call.keys));
    }
  } catch (const std::bad_alloc&) {
    tasks.failed = true;
  }
}

}  // namespace

// Writes all of out (batch, heads, keys) and returns 0, or returns 1 if memory runs out.
//   shape: batch, heads, key heads, queries, keys, size. None is 0.
//   strides, counted in floats: batch, head and token of query, the same of key, batch and head of bias.
//   bias: null for none. The last dimension of query, key and bias is contiguous; logs and out are fully contiguous.
//   least, most: query i sees key j where least <= i - j <= most; both within 2^30.
extern "C" int captum_attn_lime_column_sums(const float* query, const float* key, const float* logs, const float* bias,
                                            double* out, const int64_t* shape, const int64_t* strides, double scale,
                                            int64_t least, int64_t most, int64_t threads) {
  Call call{query, key, logs, bias, out, shape[0], shape[1], shape[2], shape[3], shape[4], shape[5],
            {},    {},  {},   scale, least, most};
  std::copy(strides, strides + 3, call.query_strides);
  std::copy(strides + 3, strides + 6, call.key_strides);
  std::copy(strides + 6, strides + 8, call.bias_strides);
  Tasks tasks(call, threads);
  // Threads of this call, not of torch: starting them takes microseconds, and forked processes inherit none.
  std::vector<std::thread> others;
  try {
    others.reserve(static_cast<size_t>(threads));
    for (int64_t t = 1; t < std::min(threads, tasks.count); ++t) {
      others.emplace_back(work, std::cref(call), std::ref(tasks));
    }
  } catch (const std::exception&) {
    // No memory or permission for more threads: fewer do the same work.
  }
  work(call, tasks);
  for (auto& other : others) other.join();
  return tasks.failed ? 1 : 0;
}
