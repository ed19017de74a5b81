#include "json.h"

#include <cmath>
#include <cstdlib>
#include <limits>

#include "error.h"

namespace secateur {

namespace {
constexpr int deepest = 64;
}

class JsonReader {
 public:
  explicit JsonReader(std::string_view text) : text_(text) {}

  Json whole() {
    Json value = read(0);
    space();
    if (at_ != text_.size()) fail("something follows the value");
    return value;
  }

 private:
  [[noreturn]] void fail(const char* what) const {
    throw PlanError("program is not valid JSON at byte " + std::to_string(at_) + ": " + what);
  }

  void space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t'))
      at_++;
  }

  char next() {
    if (at_ >= text_.size()) fail("it ends too early");
    return text_[at_++];
  }

  bool take(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  Json read(int depth) {
    if (depth > deepest) fail("it is nested too deep");
    space();
    if (at_ >= text_.size()) fail("a value is missing");
    Json value;
    switch (text_[at_]) {
      case '{': read_object(value, depth); break;
      case '[': read_list(value, depth); break;
      case '"':
        value.kind_ = Json::Kind::text;
        value.text_ = read_text();
        break;
      default:
        if (take("null")) break;
        if (take("true")) {
          value.kind_ = Json::Kind::boolean;
          value.boolean_ = true;
        } else if (take("false")) {
          value.kind_ = Json::Kind::boolean;
        } else {
          read_number(value);
        }
    }
    return value;
  }

  void read_list(Json& value, int depth) {
    value.kind_ = Json::Kind::list;
    at_++;
    space();
    if (take("]")) return;
    for (;;) {
      value.list_.push_back(read(depth + 1));
      space();
      const char c = next();
      if (c == ']') return;
      if (c != ',') fail("expected , or ]");
    }
  }

  void read_object(Json& value, int depth) {
    value.kind_ = Json::Kind::object;
    at_++;
    space();
    if (take("}")) return;
    for (;;) {
      space();
      if (at_ >= text_.size() || text_[at_] != '"') fail("expected a key");
      std::string key = read_text();
      space();
      if (next() != ':') fail("expected :");
      value.object_.emplace_back(std::move(key), read(depth + 1));
      space();
      const char c = next();
      if (c == '}') return;
      if (c != ',') fail("expected , or }");
    }
  }

  void read_number(Json& value) {
    const size_t start = at_;
    take("-");
    bool whole = true;
    size_t digits = 0;
    for (; at_ < text_.size(); at_++) {
      const char c = text_[at_];
      if (c >= '0' && c <= '9')
        digits++;
      else if (c == '.' || c == 'e' || c == 'E' || ((c == '+' || c == '-') && at_ > start))
        whole = false;
      else
        break;
    }
    if (digits == 0 || at_ - start > 64) fail("expected a value");
    const std::string number(text_.substr(start, at_ - start));
    char* end = nullptr;
    if (whole && digits <= 18) {
      value.kind_ = Json::Kind::integer;
      value.integer_ = std::strtoll(number.c_str(), &end, 10);
      value.real_ = double(value.integer_);
    } else {
      value.kind_ = Json::Kind::real;
      value.real_ = std::strtod(number.c_str(), &end);
    }
    if (end != number.c_str() + number.size() || !std::isfinite(value.real_)) fail("expected a finite number");
  }

  unsigned read_hex() {
    unsigned code = 0;
    for (int i = 0; i < 4; i++) {
      const char c = next();
      code <<= 4;
      if (c >= '0' && c <= '9')
        code |= unsigned(c - '0');
      else if (c >= 'a' && c <= 'f')
        code |= unsigned(c - 'a' + 10);
      else if (c >= 'A' && c <= 'F')
        code |= unsigned(c - 'A' + 10);
      else
        fail("expected four hexadecimal digits");
    }
    return code;
  }

  void append_utf8(std::string& text, unsigned code) {
    if (code < 0x80) {
      text += char(code);
    } else if (code < 0x800) {
      text += char(0xC0 | code >> 6);
      text += char(0x80 | (code & 0x3F));
    } else if (code < 0x10000) {
      text += char(0xE0 | code >> 12);
      text += char(0x80 | (code >> 6 & 0x3F));
      text += char(0x80 | (code & 0x3F));
    } else {
      text += char(0xF0 | code >> 18);
      text += char(0x80 | (code >> 12 & 0x3F));
      text += char(0x80 | (code >> 6 & 0x3F));
      text += char(0x80 | (code & 0x3F));
    }
  }

  std::string read_text() {
    std::string text;
    at_++;
    for (;;) {
      const char c = next();
      if (c == '"') return text;
      if (static_cast<unsigned char>(c) < 0x20) fail("a control character stands in a text");
      if (c != '\\') {
        text += c;
        continue;
      }
      switch (next()) {
        case '"': text += '"'; break;
        case '\\': text += '\\'; break;
        case '/': text += '/'; break;
        case 'b': text += '\b'; break;
        case 'f': text += '\f'; break;
        case 'n': text += '\n'; break;
        case 'r': text += '\r'; break;
        case 't': text += '\t'; break;
        case 'u': {
          unsigned code = read_hex();
          if (code >= 0xD800 && code < 0xDC00 && take("\\u")) {
            const unsigned low = read_hex();
            if (low < 0xDC00 || low > 0xDFFF) fail("half of a surrogate pair");
            code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
          }
          append_utf8(text, code);
          break;
        }
        default: fail("unknown escape");
      }
    }
  }

  std::string_view text_;
  size_t at_ = 0;
};

Json Json::parse(std::string_view text) { return JsonReader(text).whole(); }

bool Json::boolean(const char* what) const {
  if (kind_ != Kind::boolean) throw PlanError(std::string(what) + " must be true or false");
  return boolean_;
}

int64_t Json::integer(const char* what) const {
  if (kind_ != Kind::integer) throw PlanError(std::string(what) + " must be an integer");
  return integer_;
}

double Json::real(const char* what) const {
  if (kind_ != Kind::integer && kind_ != Kind::real) throw PlanError(std::string(what) + " must be a number");
  return real_;
}

const std::string& Json::text(const char* what) const {
  if (kind_ != Kind::text) throw PlanError(std::string(what) + " must be a text");
  return text_;
}

const std::vector<Json>& Json::list(const char* what) const {
  if (kind_ != Kind::list) throw PlanError(std::string(what) + " must be a list");
  return list_;
}

const std::vector<std::pair<std::string, Json>>& Json::object(const char* what) const {
  if (kind_ != Kind::object) throw PlanError(std::string(what) + " must be an object");
  return object_;
}

const Json* Json::find(const char* key) const {
  for (const auto& [name, value] : object("the value"))
    if (name == key) return &value;
  return nullptr;
}

const Json& Json::at(const char* key) const {
  const Json* value = find(key);
  if (!value) throw PlanError(std::string("'") + key + "' is missing");
  return *value;
}

}  // namespace secateur
