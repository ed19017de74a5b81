// Compiled on its own, with optimisation and without sanitizers: most of the time of the tests would go here.
#include "reference.h"

namespace reference {

Image conv(Image& x, const Conv& p, const std::vector<float>& weight, const std::vector<float>& bias, Image* residual,
           int64_t height, int64_t width, secateur::Activation activation) {
  Image y(x.n, p.outputs, height, width);
  const int64_t inputs = x.channels / p.groups, per_group = p.outputs / p.groups;
  std::vector<double> sums;
  for (int64_t n = 0; n < x.n; n++)
    for (int64_t o = 0; o < p.outputs; o++) {
      sums.assign(size_t(height * width), double(bias[size_t(o)]));
      for (int64_t c = 0; c < inputs; c++)
        for (int64_t ky = 0; ky < p.kh; ky++)
          for (int64_t kx = 0; kx < p.kw; kx++) {
            const auto w = double(weight[size_t(((o * inputs + c) * p.kh + ky) * p.kw + kx)]);
            if (w == 0.0) continue;
            for (int64_t i = 0; i < height; i++) {
              const int64_t iy = i * p.sy + ky * p.dy - p.top;
              if (iy < 0 || iy >= x.height) continue;
              double* row = &sums[size_t(i * width)];
              const float* from = &x.at(n, o / per_group * inputs + c, iy, 0);
              for (int64_t j = 0; j < width; j++) {
                const int64_t ix = j * p.sx + kx * p.dx - p.left;
                if (ix >= 0 && ix < x.width) row[j] += w * double(from[ix]);
              }
            }
          }
      for (int64_t i = 0; i < height; i++)
        for (int64_t j = 0; j < width; j++) {
          const double rest = residual ? double(residual->at(n, o, i, j)) : 0.0;
          y.at(n, o, i, j) = float(activated(sums[size_t(i * width + j)] + rest, activation));
        }
    }
  return y;
}

}  // namespace reference
