// A JSON reader for programs of plans: small, strict, bounded in depth; numbers are doubles or 64-bit integers.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace secateur {

class Json {
 public:
  enum class Kind { null, boolean, integer, real, text, list, object };

  // Throws PlanError on anything that is not one JSON value.
  static Json parse(std::string_view text);

  bool is_null() const { return kind_ == Kind::null; }

  // Each throws PlanError if the value is of another kind; `what` names it in the message.
  bool boolean(const char* what) const;
  int64_t integer(const char* what) const;
  double real(const char* what) const;  // an integer too
  const std::string& text(const char* what) const;
  const std::vector<Json>& list(const char* what) const;
  const std::vector<std::pair<std::string, Json>>& object(const char* what) const;

  // Of an object: the value of `key`, or an error.
  const Json& at(const char* key) const;
  const Json* find(const char* key) const;

 private:
  friend class JsonReader;
  Kind kind_ = Kind::null;
  bool boolean_ = false;
  int64_t integer_ = 0;
  double real_ = 0;
  std::string text_;
  std::vector<Json> list_;
  std::vector<std::pair<std::string, Json>> object_;
};

}  // namespace secateur
