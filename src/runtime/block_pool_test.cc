#include "runtime/block_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

namespace whit {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

std::vector<int32_t> iota(int32_t first, int32_t count) {
  std::vector<int32_t> tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

// Allocates and publishes the pages of a text.
std::vector<PageId> publish_all(BlockPool& pool, std::span<const int32_t> tokens,
                                std::string_view salt = "") {
  std::vector<PageId> pages;
  for (size_t at = 0; at + pool.page_tokens() <= tokens.size(); at += pool.page_tokens())
    pages.push_back(pool.publish(*pool.allocate(), pages.empty() ? -1 : pages.back(),
                                 tokens.subspan(at, pool.page_tokens()), salt));
  return pages;
}

void release_all(BlockPool& pool, const std::vector<PageId>& pages) {
  for (auto id = pages.rbegin(); id != pages.rend(); ++id) pool.release(*id);
}

TEST(BlockPoolTest, a_prefix_is_found_up_to_the_first_page_that_differs) {
  BlockPool pool(8, 4);
  const std::vector<int32_t> text = iota(0, 12);
  const std::vector<PageId> pages = publish_all(pool, text);
  release_all(pool, pages);
  EXPECT_EQ(pool.available(), 8);

  std::vector<int32_t> other = text;
  other[9] = 77;
  EXPECT_THAT(pool.find_prefix(other, "", 8), ElementsAre(pages[0], pages[1]));
  EXPECT_EQ(pool.in_use(), 2);
  EXPECT_THAT(pool.find_prefix(text, "", 2), ElementsAre(pages[0], pages[1]));
  EXPECT_EQ(pool.holders(pages[0]), 2);
  // The same tokens after others are another page.
  EXPECT_THAT(pool.find_prefix(std::span(text).subspan(4), "", 8), IsEmpty());
}

TEST(BlockPoolTest, a_salt_sees_only_its_own_pages) {
  BlockPool pool(8, 4);
  const std::vector<int32_t> text = iota(0, 8);
  const std::vector<PageId> plain = publish_all(pool, text), salted = publish_all(pool, text, "a");
  EXPECT_THAT(pool.find_prefix(text, "a", 8), ElementsAre(salted[0], salted[1]));
  EXPECT_THAT(pool.find_prefix(text, "", 8), ElementsAre(plain[0], plain[1]));
  EXPECT_THAT(pool.find_prefix(text, "b", 8), IsEmpty());
}

TEST(BlockPoolTest, the_least_recently_released_page_is_used_first_and_ends_before_beginnings) {
  BlockPool pool(4, 2);
  const std::vector<PageId> first = publish_all(pool, iota(0, 4));
  const std::vector<PageId> second = publish_all(pool, iota(100, 4));
  release_all(pool, second);
  release_all(pool, first);
  EXPECT_EQ(*pool.allocate(), second[1]);
  EXPECT_THAT(pool.find_prefix(iota(100, 4), "", 8), ElementsAre(second[0]));
  EXPECT_EQ(*pool.allocate(), first[1]);  // second[0] has a holder again
  EXPECT_EQ(*pool.allocate(), first[0]);
  EXPECT_FALSE(pool.allocate().has_value());
  EXPECT_THAT(pool.find_prefix(iota(0, 4), "", 8), IsEmpty());
}

TEST(BlockPoolTest, a_page_published_twice_becomes_one) {
  BlockPool pool(4, 2);
  const std::vector<PageId> first = publish_all(pool, iota(0, 4));
  EXPECT_EQ(publish_all(pool, iota(0, 4)), first);
  EXPECT_EQ(pool.in_use(), 2);
  EXPECT_EQ(pool.holders(first[1]), 2);
}

TEST(BlockPoolTest, a_page_is_not_found_behind_a_predecessor_that_was_replaced) {
  BlockPool pool(3, 2);
  const std::vector<PageId> pages = publish_all(pool, iota(0, 4));
  pool.release(pages[0]);  // out of order: the beginning goes first
  const PageId third = *pool.allocate(), reused = *pool.allocate();
  EXPECT_EQ(reused, pages[0]);
  pool.publish(reused, -1, iota(50, 2), "");
  std::vector<int32_t> mixed = {50, 51, 2, 3};
  EXPECT_THAT(pool.find_prefix(mixed, "", 8), ElementsAre(reused));
  pool.release(reused);
  // Publishing the old beginning again does not bring its old continuation back.
  pool.publish(third, -1, iota(0, 2), "");
  EXPECT_THAT(pool.find_prefix(iota(0, 4), "", 8), ElementsAre(third));
}

TEST(BlockPoolTest, forgetting_leaves_pages_in_use_alone) {
  BlockPool pool(4, 2);
  const std::vector<PageId> pages = publish_all(pool, iota(0, 6));
  pool.release(pages[2]);
  pool.forget_unused();
  EXPECT_THAT(pool.find_prefix(iota(0, 6), "", 8), ElementsAre(pages[0], pages[1]));
}

}  // namespace
}  // namespace whit
