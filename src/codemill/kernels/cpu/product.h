// Products of a few or many rows with a weight, cut into items for several threads.
//
// A row's result depends on nothing but the row and the weight: the dot product of a group is exact in integers, and
// groups are added in ascending order, whatever the instruction set and the number of rows. (Plain weights are summed in
// an order that depends on the instruction set alone.)
#pragma once

#include <vector>

#include "matrix.h"

namespace codemill {

// The operations of one instruction set.
struct ProductKernels {
    int lanes;
    // Quantises row `row` of `rows.values`.
    void (*quantize)(const Rows& rows, int row);
    // out = rows @ W^T for the outputs of some blocks. `panel` has room for `panel_bytes`.
    void (*few_rows)(const Matrix& weight, int first_block, int num_blocks, const Rows& rows, int num_rows, Output out);
    void (*many_rows)(const Matrix& weight, int first_block, int num_blocks, const Rows& rows, int num_rows, Output out,
                      uint8_t* panel);
    size_t (*panel_bytes)(const Matrix& weight, int num_blocks, int num_rows);
    int panel_blocks;  // of an item with many rows
};

constexpr int kFewRows = 16;  // up to so many, weights are read from memory and used at once

constexpr int kTileLanes = 256;  // a tile of AMX has 16 x 16

// The best for this processor, of at most `max_lanes` floats a vector or a tile; the plain ones for 4.
const ProductKernels& product_kernels(int max_lanes);
// Each is null where the processor lacks the instructions.
const ProductKernels* product_kernels_amx();
const ProductKernels* product_kernels_avx512();
const ProductKernels* product_kernels_avx2();
const ProductKernels* product_kernels_neon();
const ProductKernels* product_kernels_plain();

class Product {
public:
    Product(const ProductKernels& kernels, const Matrix& weight, const Rows& rows, int num_rows, Output out);
    size_t count() const { return num_block_items_ * num_row_items_; }
    void compute(size_t index) const;

private:
    const ProductKernels& kernels_;
    Matrix weight_;
    Rows rows_;
    Output out_;
    int num_rows_, blocks_per_item_, rows_per_item_;
    size_t num_block_items_, num_row_items_;
};

// Several products as one phase.
class Products {
public:
    void add(const Product& product);
    size_t count() const { return ends_.empty() ? 0 : ends_.back(); }
    void compute(size_t index) const;

private:
    std::vector<Product> products_;
    std::vector<size_t> ends_;  // items up to and with each product
};

}  // namespace codemill
