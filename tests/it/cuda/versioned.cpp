// What NVRTC and cuBLASLt of one MAJOR version of CUDA have of their own; libraries.cpp, in the
// driver's library, has the rest. A driver of an older version runs neither.
#define API extern "C" __attribute__((visibility("default")))

API int emulate_program(int major, void** program, const char* source, const char* name,
                        int headers, const char* const* texts, const char* const* names);
API int emulate_handle(int major, void** handle);

API int nvrtcVersion(int* major, int* minor) { return *major = MAJOR, *minor = 0, 0; }
API int nvrtcCreateProgram(void** program, const char* source, const char* name, int headers,
                           const char* const* texts, const char* const* names) {
    return emulate_program(MAJOR, program, source, name, headers, texts, names);
}
API int cublasLtCreate(void** handle) { return emulate_handle(MAJOR, handle); }
