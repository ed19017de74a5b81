// Margins of strips that are filled from what the strips hand to each other, against the same margins filled from the
// values of the others directly.
#include <cstring>

#include "borders.h"
#include "dispatch.h"
#include "testing.h"

using namespace secateur;
using namespace testing;

namespace {

// Bytes that were handed over.
int64_t check(const KernelTable& table) {
  int32_t images = 1;
  while (images * 2 < table.lanes && between(0, 2) == 0) images *= 2;
  const auto groups = int32_t(between(2, 4));
  LaneLayout layout = image_layout(table, images, between(1, 19), between(groups * 2, 60), between(2, 60), groups);
  layout.top = between(0, 3), layout.bottom = between(0, 3), layout.left = between(0, 3), layout.right = between(0, 3);
  layout.past = between(0, 1) == 1;
  layout.fill = uniform();

  const Buffer values(layout.bytes()), expected(layout.bytes());
  std::memcpy(expected.data, values.data, size_t(layout.bytes()));
  const Mover direct(table, layout, 0, layout, 0, every_pixel, Region::margins);
  for (int64_t group = 0; group < groups; group++)
    direct.run(expected.data, {group, {0, layout.channels}}, expected.data);

  // Each group gives before any takes, as in two stages; margins may be filled some channels at a time.
  const Borders borders(table, layout, 1);
  const Buffer handed(borders.bytes());
  const int64_t half = layout.channels / 2;
  for (int64_t group = groups; group-- > 0;) borders.give(values.data, group, handed.data);
  for (int64_t group = 0; group < groups; group++)
    for (const Share& part : {Share{0, half}, Share{half, layout.channels}})
      borders.run(handed.data, {group, part}, values.data + part.begin * layout.plane());
  if (std::memcmp(expected.data, values.data, size_t(layout.bytes())) != 0) {
    std::printf("%s: margins differ, %d groups of blocks of %dx%d\n", table.isa, groups, int(layout.block_height),
                int(layout.block_width));
    std::exit(1);
  }
  return borders.bytes();
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 300;
  for (const KernelTable* table : usable_tables()) {
    number_bytes = table->number_bytes;
    int64_t handed = 0;
    for (int i = 0; i < rounds; i++) handed += check(*table);
    if (handed == 0) return 1;
    std::printf("%s: margins of strips agree, %d rounds\n", table->isa, rounds);
  }
}
