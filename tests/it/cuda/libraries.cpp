// NVRTC and cuBLASLt of cards that are not there (driver.cpp): kernels are compiled as C++,
// products are sums. What differs between versions of CUDA is in versioned.cpp.
#include <stdlib.h>
#include <unistd.h>

#include <fstream>

#include "card.h"

// ---- NVRTC

namespace {
struct Program {
    int major;
    std::string source, name;
    std::map<std::string, std::string> headers;
    std::string log, image;
};

std::string read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
}
}  // namespace

API int nvrtcGetNumSupportedArchs(int* count) { return *count = 3, 0; }
API int nvrtcGetSupportedArchs(int* all) { return all[0] = 80, all[1] = 90, all[2] = 100, 0; }

API int emulate_program(int major, void** program, const char* source, const char* name,
                        int headers, const char* const* texts, const char* const* names) {
    Program* made = new Program{major, source, name, {}, "", ""};
    for (int i = 0; i < headers; i++) made->headers[names[i]] = texts[i];
    return *program = made, 0;
}
API int nvrtcDestroyProgram(void** program) { return delete (Program*)*program, 0; }

API int nvrtcCompileProgram(void* program, int count, const char* const* options) {
    Program& p = *(Program*)program;
    if (getenv("TESSERA_EMULATE_COMPILE_FAILS"))
        return p.log = p.name + "(7): error: expected a semicolon", 6;
    char folder_name[] = "/tmp/tessera-nvrtc-XXXXXX";
    std::string folder = mkdtemp(folder_name);
    std::ofstream(folder + "/" + p.name, std::ios::binary) << p.source;
    for (auto& [name, text] : p.headers)
        std::ofstream(folder + "/" + name, std::ios::binary) << text;
    std::string output = folder + "/kernels.so", log = folder + "/log";
    std::string command =
        "c++ -std=c++17 -O2 -shared -fPIC -fno-strict-aliasing -ffp-contract=off -Wall -Wextra "
        "-Werror -Wno-unknown-pragmas -include " EMULATE_H;
    for (int i = 0; i < count; i++)
        if (strncmp(options[i], "-D", 2) == 0) command += std::string(" ") + options[i];
    command += " -x c++ " + folder + "/" + p.name + " -o " + output + " 2> " + log;
    bool fine = system(command.c_str()) == 0;
    p.log = read_file(log);
    std::string body = fine ? read_file(output) : "";
    uint64_t bytes = body.size();
    p.image = "CUDA " + std::to_string(p.major) + ":" + std::string((const char*)&bytes, 8) + body;
    (void)!system(("rm -r " + folder).c_str());
    return fine ? 0 : 6;
}

API int nvrtcGetProgramLogSize(void* p, size_t* size) {
    return *size = ((Program*)p)->log.size() + 1, 0;
}
API int nvrtcGetProgramLog(void* p, char* log) {
    return strcpy(log, ((Program*)p)->log.c_str()), 0;
}
API int nvrtcGetCUBINSize(void* p, size_t* size) { return *size = ((Program*)p)->image.size(), 0; }
API int nvrtcGetCUBIN(void* p, char* to) {
    std::string& image = ((Program*)p)->image;
    return memcpy(to, image.data(), image.size()), 0;
}
API int nvrtcGetPTXSize(void* p, size_t* size) { return nvrtcGetCUBINSize(p, size); }
API int nvrtcGetPTX(void* p, char* to) { return nvrtcGetCUBIN(p, to); }

// ---- cuBLASLt

namespace {
struct Layout {
    int type;
    uint64_t rows, cols;
    int64_t stride;
};
struct Product {
    int transposed = 0;
};

float number(const void* at, int type, size_t i) {
    if (type == 0) return ((const float*)at)[i];
    uint16_t bits = ((const uint16_t*)at)[i];
    if (type == 14) {
        uint32_t wide = (uint32_t)bits << 16;
        float x;
        return memcpy(&x, &wide, 4), x;
    }
    _Float16 half;
    return memcpy(&half, &bits, 2), (float)half;
}

void store(void* at, int type, size_t i, float x) {
    if (type == 0) {
        ((float*)at)[i] = x;
    } else if (type == 14) {
        uint32_t bits;
        memcpy(&bits, &x, 4);
        ((uint16_t*)at)[i] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    } else {
        ((_Float16*)at)[i] = (_Float16)x;
    }
}

std::vector<float> widened(const void* at, const Layout& l) {
    std::vector<float> all(l.rows * l.cols);
    for (size_t c = 0; c < l.cols; c++)
        for (size_t r = 0; r < l.rows; r++)
            all[c * l.rows + r] = number(at, l.type, c * (size_t)l.stride + r);
    return all;
}
}  // namespace

API int emulate_handle(int major, void** handle) {
    return *handle = (void*)1, major * 1000 > state().cards[0].driver ? 1 : 0;
}
API int cublasLtDestroy(void*) { return 0; }
API int cublasLtMatrixLayoutCreate(void** layout, int type, uint64_t rows, uint64_t cols,
                                   int64_t stride) {
    return *layout = new Layout{type, rows, cols, stride}, 0;
}
API int cublasLtMatrixLayoutDestroy(void* layout) { return delete (Layout*)layout, 0; }
API int cublasLtMatmulDescCreate(void** product, int, int) { return *product = new Product(), 0; }
API int cublasLtMatmulDescDestroy(void* product) { return delete (Product*)product, 0; }
API int cublasLtMatmulDescSetAttribute(void* product, int attribute, const void* value, size_t) {
    if (attribute == 3) memcpy(&((Product*)product)->transposed, value, 4);
    return attribute == 3 ? 0 : 7;
}
// Of a preference, the reduction schemes it allows are kept: all, when nobody says.
API int cublasLtMatmulPreferenceCreate(void** preference) {
    return *preference = new unsigned(7), 0;
}
API int cublasLtMatmulPreferenceDestroy(void* preference) {
    return delete (unsigned*)preference, 0;
}
API int cublasLtMatmulPreferenceSetAttribute(void* preference, int attribute, const void* value,
                                             size_t bytes) {
    if (attribute == 3 && bytes == 4) memcpy(preference, value, 4);
    return attribute == 1 || (attribute == 3 && bytes == 4) ? 0 : 7;
}
// Three ways, of which the second does not start.
API int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void* preference,
                                       int room, void* results, int* count) {
    Guard guard(state().lock);
    state().reduction_schemes |= *(unsigned*)preference;
    const size_t bytes = 64 + 8 + 4 + 4 + 16;
    *count = room < 3 ? room : 3;
    for (int i = 0; i < *count; i++) {
        memset((char*)results + bytes * i, 0, bytes);
        ((char*)results)[bytes * i] = (char)i;
    }
    return 0;
}

API int cublasLtMatmul(void*, void* product_, const void*, const void* a, void* a_layout,
                       const void* b, void* b_layout, const void*, const void*, void*, void* d,
                       void* d_layout, const void* algorithm, void*, size_t, void* stream_) {
    Guard guard(state().lock);
    if (*(const char*)algorithm == 1) return 15;
    Layout la = *(Layout*)a_layout, lb = *(Layout*)b_layout, ld = *(Layout*)d_layout;
    // Only what Tessera asks for: Aᵀ B.
    if (!((Product*)product_)->transposed || la.rows != lb.rows || ld.rows != la.cols) return 7;
    if (ld.cols != lb.cols || (Address)a % 256 || (Address)b % 256 || (Address)d % 256) return 7;
    Card* card = &state().cards[((Stream*)stream_)->card];
    push((Stream*)stream_, [=] {
        card->clock_us++;
        std::vector<float> left = widened(a, la), right = widened(b, lb);
        for (size_t j = 0; j < ld.cols; j++)
            for (size_t i = 0; i < ld.rows; i++) {
                float sums[8] = {};
                const float *x = &left[i * la.rows], *y = &right[j * lb.rows];
                size_t k = 0;
                for (; k + 8 <= la.rows; k += 8)
                    for (size_t l = 0; l < 8; l++) sums[l] += x[k + l] * y[k + l];
                float sum = 0;
                for (float part : sums) sum += part;
                for (; k < la.rows; k++) sum += x[k] * y[k];
                store(d, ld.type, j * (size_t)ld.stride + i, sum);
            }
    });
    return 0;
}
