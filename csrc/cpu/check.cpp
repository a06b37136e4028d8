#include "check.h"

namespace steerfast {
namespace {

template <typename Code>
bool known(Code code, Code last) {
  return static_cast<uint32_t>(code) <= static_cast<uint32_t>(last);
}

bool fits(const Record& record, const SteerParams& p) {
  if (record.delta >= p.bank_rows || !known(record.finish, int32_t(Finish::kShrink))) return false;
  if (record.read_count < 0 || record.read_count > kMaxReads) return false;
  return record.read_count == 0 || (record.program >= 0 && record.program < p.programs);
}

bool fits(const Read& read, int32_t count, const SteerParams& p) {
  return known(read.op, Op::kSlerp) && known(read.gate, Gate::kSigmoid) &&
         read.source < p.bank_rows && read.target < p.bank_rows && read.partner < count &&
         read.key < count;
}

}  // namespace

Checked check(const SteerParams& p) {
  Checked checked;
  if (!p.row_slot) return checked;
  int32_t last = -1;
  int32_t reads_of_last = 0;
  for (int64_t n = 0; n < p.rows; ++n) {
    const int32_t slot = p.row_slot[n];
    if (slot < 0) continue;
    if (slot != last) {
      if (slot >= p.slots) return {"row_slot"};
      const Record& record = p.records[slot];
      if (!fits(record, p)) return {"records"};
      const Read* reads = p.reads + int64_t{record.program} * kMaxReads;
      for (int32_t i = 0; i < record.read_count; ++i)
        if (!fits(reads[i], record.read_count, p)) return {"reads"};
      last = slot;
      reads_of_last = record.read_count;
    }
    checked.reads += reads_of_last;
  }
  return checked;
}

}  // namespace steerfast
