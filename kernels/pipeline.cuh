// The order of work of a kernel whose blocks live as long as it does, and share its tasks.
//
// An *item* is a row, a filter to be transformed, or what a channel's rows have summed; items are worked on in order,
// each in *phases* of as many tasks: columns, rows of points, columns back, and of sums the taps. In step t of the
// pipeline item t is in its first phase, item t - distance in its second, item t - 2 distance in its third: so what one
// phase writes is soon read by the next, from L2, and a block that waits for it seldom waits long. Blocks take the
// numbers of tasks from a counter. A task waits for tasks of lower numbers only, which running blocks have taken
// before: the first task that is not done is always being worked on, and no number of blocks can come to a standstill.
//
// What lies between the phases is in one of a few slots, which later items use again. Every phase counts its finished
// tasks in the item's slot, from the first item on, so a count says which item it has come to.
#pragma once
#include "types.cuh"

namespace fftconv {

// Fields and their meaning are those of long_schedule.py.
struct Schedule {
  unsigned tasks;         // in all
  int distance;           // steps between the phases of an item; 0: a step is all phases of one item
  int is_mixed;           // the phases of a step alternate, task by task; else they come one after the other
  int slots;              // of rows
  int filter_slots;       // of filters' spectra
  int sum_slots, chains;  // of channels that have sums; row b of a channel adds to that of chain b % chains
  int filters;            // that are transformed
  int lead;               // of them, before the first row
  int has_own_filter;     // the first item of a channel is the filter of channel + lead
  int channel_items;      // that, its rows, and its sums where there are any
  int batch, channels;
  int is_shared;  // one filter for all channels
};

enum Phase { kColumns, kRows, kBack, kTaps };
enum FilterCounter { kFilterColumns, kFilterRows, kFilterReads };

struct Item {
  bool is_there, is_filter, is_sum;
  int channel, batch;

  FFTCONV_DEVICE Item(const Schedule& schedule, int index) {
    channel = index;
    batch = 0;
    is_filter = index < schedule.lead;
    is_sum = false;
    is_there = index >= 0;
    if (is_filter) return;
    index -= schedule.lead;
    channel = index / schedule.channel_items;
    batch = index - channel * schedule.channel_items - schedule.has_own_filter;
    is_filter = batch < 0;
    is_sum = batch >= schedule.batch;
    if (is_filter) channel += schedule.lead;
    is_there = channel < (is_filter ? schedule.filters : schedule.channels);
  }
};

// A task: tile or row `part` of item `index`, in a phase of it.
template <int kLog2Parts, int kPhases>
struct Task {
  int phase, part, index;

  FFTCONV_DEVICE Task(const Schedule& schedule, unsigned number) {
    constexpr unsigned kStep = static_cast<unsigned>(kPhases) << kLog2Parts;
    const int step = number / kStep, rest = number % kStep;
    // Later phases first, so that a slot is free before it is filled again in the same step.
    const int turn = schedule.is_mixed ? rest % kPhases : rest >> kLog2Parts;
    part = schedule.is_mixed ? rest / kPhases : rest & ((1 << kLog2Parts) - 1);
    phase = schedule.distance > 0 ? kPhases - 1 - turn : turn;
    index = step - phase * schedule.distance;
  }
};

// Waits, in one thread, until the counter has come to `count`; what was written before that is then seen.
FFTCONV_DEVICE void wait_for(const unsigned* g_counter, unsigned count) {
  while (*static_cast<const volatile unsigned*>(g_counter) < count) __nanosleep(20);
  __threadfence();
}

// Counts a task of the block as done, once all its threads have come here.
FFTCONV_DEVICE void signal_done(unsigned* g_counter) {
  __syncthreads();
  if (threadIdx.x != 0) return;
  __threadfence();
  atomicAdd(g_counter, 1u);
}

// Three counters of each slot: of a row's, the tasks done of its phases; of a filter's, those of its two phases and
// those that have read it; of sums, those of their last three phases.
struct Counters {
  unsigned* g_counters;
  int slots, filter_slots;

  FFTCONV_DEVICE Counters(unsigned* g_counters, const Schedule& schedule)
      : g_counters(g_counters), slots(schedule.slots), filter_slots(schedule.filters > 0 ? schedule.filter_slots : 0) {}

  FFTCONV_DEVICE unsigned* of_row(int slot, int phase) const { return at(slot, phase); }
  FFTCONV_DEVICE unsigned* of_filter(int slot, FilterCounter which) const { return at(slots + slot, which); }
  FFTCONV_DEVICE unsigned* of_sum(int slot, int phase) const { return at(slots + filter_slots + slot, phase - kRows); }

 private:
  // A sector each, after that of the number of the next task: blocks look at one while others count in the next.
  FFTCONV_DEVICE unsigned* at(int slot, int which) const { return g_counters + 8 * (1 + 3 * slot + which); }
};

// A slot, and how often it was used before.
struct Use {
  int slot;
  unsigned turn;

  FFTCONV_DEVICE Use(int index, int slots) : slot(index % slots), turn(index / slots) {}
};

// A task with its item, the slots that it uses, and what it waits for.
template <int kLog2Parts, int kPhases>
struct Work {
  static constexpr unsigned kParts = 1 << kLog2Parts;
  const Schedule& schedule;
  Task<kLog2Parts, kPhases> task;
  Item item;
  Counters counters;
  Use row, filter, sum;

  FFTCONV_DEVICE Work(const Schedule& schedule, unsigned* g_counters, unsigned number)
      : schedule(schedule),
        task(schedule, number),
        item(schedule, task.index),
        counters(g_counters, schedule),
        row(item.channel * schedule.batch + item.batch, schedule.slots),
        filter(schedule.is_shared ? 0 : item.channel, schedule.filter_slots),
        sum(item.channel, schedule.sum_slots) {}

  FFTCONV_DEVICE bool is_nothing() const {
    if (!item.is_there) return true;
    if (item.is_sum) return task.phase == kColumns;
    return task.phase > (item.is_filter ? kRows : kBack);
  }

  // Before a task, in one thread: waits for those that write what it reads, and that read what it overwrites.
  FFTCONV_DEVICE void wait() const {
    if (item.is_filter) {
      if (task.phase == kColumns) {
        wait_for(counters.of_filter(filter.slot, kFilterReads), filter.turn * schedule.batch * kParts);
      } else {
        wait_for(counters.of_filter(filter.slot, kFilterColumns), (filter.turn + 1) * kParts);
      }
    } else if (item.is_sum) {
      wait_as_sum();
    } else if (task.phase == kColumns) {
      wait_for(counters.of_row(row.slot, kBack), row.turn * kParts);
    } else {
      wait_for(counters.of_row(row.slot, task.phase - 1), (row.turn + 1) * kParts);
      if (task.phase == kRows) wait_as_product();
    }
  }
  FFTCONV_DEVICE void signal() const {
    if (item.is_filter) {
      signal_done(counters.of_filter(filter.slot, task.phase == kColumns ? kFilterColumns : kFilterRows));
    } else if (item.is_sum) {
      signal_done(counters.of_sum(sum.slot, task.phase));
    } else {
      signal_done(counters.of_row(row.slot, task.phase));
      if (task.phase == kRows && schedule.filters > 0 && threadIdx.x == 0) {
        atomicAdd(counters.of_filter(filter.slot, kFilterReads), 1u);
      }
    }
  }

 private:
  FFTCONV_DEVICE bool has_sums() const { return schedule.channel_items > schedule.has_own_filter + schedule.batch; }

  // The rows of points of a row need the filter's spectrum, and add to what the chain's row before has left, or are the
  // first to do so since the slot's last channel.
  FFTCONV_DEVICE void wait_as_product() const {
    if (schedule.filters > 0) wait_for(counters.of_filter(filter.slot, kFilterRows), (filter.turn + 1) * kParts);
    if (!has_sums()) return;
    if (item.batch < schedule.chains) {
      wait_for(counters.of_sum(sum.slot, kTaps), sum.turn * kParts);
    } else {
      wait_for_row(item.batch - schedule.chains);
    }
  }
  FFTCONV_DEVICE void wait_as_sum() const {
    if (task.phase == kRows) {
      // Without rows the sums were there before.
      for (int row = schedule.batch - 1; row >= 0 && row >= schedule.batch - schedule.chains; row--) wait_for_row(row);
      return;
    }
    wait_for(counters.of_sum(sum.slot, task.phase - 1), (sum.turn + 1) * kParts);
    if (task.phase == kTaps && schedule.is_shared && item.channel > 0) {  // which adds to the total of all channels
      const Use before(item.channel - 1, schedule.sum_slots);
      wait_for(counters.of_sum(before.slot, kTaps), (before.turn + 1) * kParts);
    }
  }
  FFTCONV_DEVICE void wait_for_row(int batch) const {
    const Use before(item.channel * schedule.batch + batch, schedule.slots);
    wait_for(counters.of_row(before.slot, kRows), (before.turn + 1) * kParts);
  }
};

// Takes tasks as long as there are any, and calls run(work) in all threads for each; s_numbers: two. The next number is
// fetched while a task is worked on.
template <class Work, class Run>
FFTCONV_DEVICE void take_tasks(const Schedule& schedule, unsigned* g_counters, unsigned* s_numbers, Run run) {
  unsigned next = threadIdx.x == 0 ? atomicAdd(g_counters, 1u) : 0u;
  for (int turn = 0;; turn ^= 1) {
    if (threadIdx.x == 0) {
      if (next < schedule.tasks) {
        const Work work(schedule, g_counters, next);
        if (!work.is_nothing()) work.wait();
      }
      s_numbers[turn] = next;
    }
    __syncthreads();
    const unsigned number = s_numbers[turn];
    if (number >= schedule.tasks) return;
    if (threadIdx.x == 0) next = atomicAdd(g_counters, 1u);
    const Work work(schedule, g_counters, number);
    if (work.is_nothing()) continue;
    run(work);
    work.signal();
  }
}

}  // namespace fftconv
