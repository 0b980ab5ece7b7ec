// The driver of cards that are not there: as much of it as Tessera calls.
//
// Made to find faults of the host's code: work runs when it is waited for and not before; memory is
// NaN until it is written and has canaries; page-locked memory is read when its copy runs. Kernels
// are the emulated ones (tests/it/kernels/emulate.h), their threads in reverse order every other
// launch. What a recorded step has beside its main stream runs as early as it may in one replay and
// as late in the next. A card can be told to fail, and how long its recorded steps take.
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

#include "card.h"

// ---- What tests ask for

API void emulate_set(int card, const char* what, long value) {
    Guard guard(state().lock);
    Card& c = state().cards[card];
    std::string name = what;
    if (name == "memory") c.memory = (size_t)value;
    if (name == "refuse_in") c.refuse_in = value;
    if (name == "break_in") c.break_in = value;
    if (name == "refuse_copies") c.refuse_copies = value;
    if (name == "refuse_capture") c.refuse_capture = value;
    if (name == "inline_us") c.inline_us = value;
    if (name == "beside_us") c.beside_us = value;
    if (name == "cards") state().count = (int)value;
}

API long emulate_get(int card, const char* what) {
    Guard guard(state().lock);
    Card& c = state().cards[card];
    std::string name = what;
    if (name == "calls") return c.calls;
    if (name == "launches") return c.launches;
    if (name == "replays") return c.replays;
    if (name == "beside_replays") return c.beside_replays;
    if (name == "waits") return c.waits;
    if (name == "used") return (long)c.used;
    if (name == "reduction_schemes") return (long)state().reduction_schemes;
    return -1;
}

// ---- Driver

API Result cuInit(unsigned) { return state().count > 0 ? SUCCESS : NO_DEVICE; }
API Result cuDriverGetVersion(int* version) { return *version = state().cards[0].driver, SUCCESS; }
API Result cuDeviceGetCount(int* count) { return *count = state().count, SUCCESS; }
API Result cuDeviceGet(int* device, int ordinal) { return *device = ordinal, SUCCESS; }
API Result cuDeviceGetName(char* name, int bytes, int) {
    return snprintf(name, (size_t)bytes, "Emulated GPU"), SUCCESS;
}
API Result cuDeviceGetAttribute(int* value, int attribute, int device) {
    Card& card = state().cards[device];
    switch (attribute) {
        case 75: *value = card.major; break;
        case 76: *value = card.minor; break;
        case 16: *value = 3; break;
        case 97: *value = 227 << 10; break;
        default: return INVALID_VALUE;
    }
    return SUCCESS;
}
API Result cuDevicePrimaryCtxRetain(void** context, int device) {
    return *context = (void*)(intptr_t)(device + 1), SUCCESS;
}
API Result cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
API Result cuCtxSetCurrent(void* context) { return current = (int)(intptr_t)context - 1, SUCCESS; }

API Result cuMemGetInfo_v2(size_t* free, size_t* total) {
    Guard guard(state().lock);
    Card& card = state().cards[current];
    *total = card.memory, *free = card.memory - card.used;
    return SUCCESS;
}

static Result allocate(std::map<Address, Allocation>& into, size_t bytes, Address* address) {
    unsigned char* start = nullptr;
    if (posix_memalign((void**)&start, 256, bytes + 2 * CANARY_BYTES)) return OUT_OF_MEMORY;
    memset(start, 0xa5, CANARY_BYTES);
    memset(start + CANARY_BYTES, 0xff, bytes);
    memset(start + CANARY_BYTES + bytes, 0xa5, CANARY_BYTES);
    *address = (Address)(start + CANARY_BYTES);
    into[*address] = {start, bytes};
    return SUCCESS;
}

static Result release(std::map<Address, Allocation>& from, Address address, size_t* bytes) {
    auto found = from.find(address);
    if (found == from.end()) return INVALID_VALUE;
    check_canaries(found->second);
    *bytes = found->second.bytes;
    free(found->second.start);
    from.erase(found);
    return SUCCESS;
}

API Result cuMemAlloc_v2(Address* address, size_t bytes) {
    Guard guard(state().lock);
    Card& card = state().cards[current];
    if (card.lost) return ILLEGAL_ADDRESS;
    if (bytes == 0) return INVALID_VALUE;
    if (bytes > card.memory - card.used) return OUT_OF_MEMORY;
    card.used += bytes;
    return allocate(card.memories, bytes, address);
}

API Result cuMemFree_v2(Address address) {
    Guard guard(state().lock);
    Card& card = state().cards[current];
    size_t bytes = 0;
    Result result = release(card.memories, address, &bytes);
    card.used -= bytes;
    return result;
}

API Result cuMemHostAlloc(void** start, size_t bytes, unsigned) {
    Guard guard(state().lock);
    return allocate(state().cards[current].pinned, bytes, (Address*)start);
}

API Result cuMemFreeHost(void* start) {
    Guard guard(state().lock);
    size_t bytes = 0;
    return release(state().cards[current].pinned, (Address)start, &bytes);
}

static bool inside(const std::map<Address, Allocation>& all, Address at, size_t bytes) {
    auto next = all.upper_bound(at);
    if (next == all.begin()) return false;
    auto found = std::prev(next);
    return at + bytes <= found->first + found->second.bytes;
}

API Result cuStreamCreate(void** stream, unsigned) {
    return *stream = new Stream{current, {}, nullptr, {}}, SUCCESS;
}
API Result cuStreamDestroy_v2(void* stream) { return delete (Stream*)stream, SUCCESS; }

API Result cuStreamSynchronize(void* stream_) {
    Guard guard(state().lock);
    Stream* stream = (Stream*)stream_;
    Card& card = state().cards[stream->card];
    if (stream->recording) return CAPTURE_UNSUPPORTED;
    card.waits++;
    std::vector<std::function<void()>> queue;
    queue.swap(stream->queue);
    for (auto& work : queue)
        if (!card.lost) work();
    return card.lost ? ILLEGAL_ADDRESS : SUCCESS;
}

API Result cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t bytes, void* stream_) {
    Guard guard(state().lock);
    Stream* stream = (Stream*)stream_;
    Card& card = state().cards[stream->card];
    if (card.lost) return ILLEGAL_ADDRESS;
    if (!inside(card.memories, to, bytes)) return INVALID_VALUE;
    if (card.refuse_copies > 0) return card.refuse_copies--, OUT_OF_MEMORY;
    if (inside(card.pinned, (Address)from, bytes)) {
        push(stream, [=] { memcpy((void*)to, from, bytes); });
        return SUCCESS;
    }
    std::string copy((const char*)from, bytes);
    push(stream, [=] { memcpy((void*)to, copy.data(), bytes); });
    return SUCCESS;
}

API Result cuMemcpyDtoHAsync_v2(void* to, Address from, size_t bytes, void* stream_) {
    Guard guard(state().lock);
    Stream* stream = (Stream*)stream_;
    Card& card = state().cards[stream->card];
    if (card.lost) return ILLEGAL_ADDRESS;
    if (!inside(card.memories, from, bytes)) return INVALID_VALUE;
    push(stream, [=] { memcpy(to, (const void*)from, bytes); });
    return SUCCESS;
}

API Result cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void* stream_) {
    Guard guard(state().lock);
    Stream* stream = (Stream*)stream_;
    Card& card = state().cards[stream->card];
    if (card.lost) return ILLEGAL_ADDRESS;
    if (!inside(card.memories, from, bytes) || !inside(card.memories, to, bytes))
        return INVALID_VALUE;
    push(stream, [=] { memcpy((void*)to, (const void*)from, bytes); });
    return SUCCESS;
}

API Result cuModuleLoadData(void** module, const void* image) {
    // The image says of which version it is and how long: see nvrtcCompileProgram.
    if (memcmp(image, "CUDA ", 5) != 0) return INVALID_IMAGE;
    if (atoi((const char*)image + 5) * 1000 > state().cards[current].driver)
        return UNSUPPORTED_VERSION;
    uint64_t bytes;
    memcpy(&bytes, (const char*)image + 8, 8);
    char path[] = "/tmp/tessera-kernels-XXXXXX";
    int file = mkstemp(path);
    if (file < 0) return INVALID_IMAGE;
    bool written = write(file, (const char*)image + 16, bytes) == (ssize_t)bytes;
    close(file);
    void* library = written ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : nullptr;
    unlink(path);
    if (!library) return fprintf(stderr, "emulated card: %s\n", dlerror()), INVALID_IMAGE;
    return *module = new Module{library, path}, SUCCESS;
}

API Result cuModuleUnload(void* module) {
    dlclose(((Module*)module)->library);
    return delete (Module*)module, SUCCESS;
}

API Result cuModuleGetFunction(void** function, void* module, const char* name) {
    void* library = ((Module*)module)->library;
    auto size = (size_t(*)())dlsym(library, (std::string("emulate_size_") + name).c_str());
    auto entry = (Entry)dlsym(library, (std::string("emulate_") + name).c_str());
    if (!size || !entry) return NOT_FOUND;
    return *function = new Function{name, entry, size()}, SUCCESS;
}

API Result cuFuncGetParamInfo(void* function, size_t index, size_t* offset, size_t* bytes) {
    if (index != 0) return INVALID_VALUE;
    return *offset = 0, *bytes = ((Function*)function)->args_bytes, SUCCESS;
}

API Result cuFuncSetAttribute(void* function, int attribute, int value) {
    if (attribute != 8 || value > 227 << 10) return INVALID_VALUE;
    return ((Function*)function)->shared_max = (size_t)value, SUCCESS;
}

API Result cuLaunchKernel(void* function_, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                          unsigned by, unsigned bz, unsigned shared, void* stream_, void** params,
                          void**) {
    Guard guard(state().lock);
    Stream* stream = (Stream*)stream_;
    Function* function = (Function*)function_;
    Card& card = state().cards[stream->card];
    if (card.lost) return ILLEGAL_ADDRESS;
    if (!gx || !gy || !gz || gy > 65535 || gz > 65535 || bx * by * bz > 1024) return INVALID_VALUE;
    if (shared > function->shared_max) return INVALID_VALUE;
    card.calls++;
    if (card.refuse_in >= 0 && card.refuse_in-- == 0) return OUT_OF_RESOURCES;
    bool breaks = card.break_in >= 0 && card.break_in-- == 0;
    std::string args((const char*)params[0], function->args_bytes);
    Card* at = &card;
    push(stream, [=] {
        if (breaks) {
            at->lost = true;
            return;
        }
        unsigned where[12] = {gx, gy, gz, bx, by, bz, 0, 0, 0, gx, gy, gz};
        bool reverse = at->launches++ % 2 == 1;
        at->clock_us++;
        alignas(16) unsigned char aligned[4096];
        memcpy(aligned, args.data(), args.size());
        if (const char* error = function->entry(where, shared, aligned, reverse)) {
            fprintf(stderr, "emulated card: %s: %s\n", function->name.c_str(), error);
            at->lost = true;
        }
    });
    return SUCCESS;
}

API Result cuStreamBeginCapture_v2(void* stream_, int) {
    Guard guard(state().lock);
    Stream* stream = (Stream*)stream_;
    Card& card = state().cards[stream->card];
    if (card.refuse_capture > 0) return card.refuse_capture--, CAPTURE_UNSUPPORTED;
    stream->last.clear();
    return stream->recording = new Graph{stream, {}, {}}, SUCCESS;
}

API Result cuStreamEndCapture(void* stream_, void** graph) {
    Guard guard(state().lock);
    Stream* stream = (Stream*)stream_;
    Graph* made = stream->recording;
    if (!made || made->origin != stream) return INVALID_VALUE;
    std::vector<bool> joined(made->nodes.size());
    std::vector<size_t> order;
    for (size_t i : stream->last) made->visit(i, joined, order);
    for (Stream* other : made->others) other->recording = nullptr;
    stream->recording = nullptr;
    if (order.size() < made->nodes.size()) return delete made, CAPTURE_UNJOINED;
    return *graph = made, SUCCESS;
}

API Result cuEventCreate(void** event, unsigned flags) {
    Event* made = new Event();
    made->timed = flags != 2;
    return *event = made, SUCCESS;
}
API Result cuEventDestroy_v2(void* event) { return delete (Event*)event, SUCCESS; }

API Result cuEventRecord(void* event_, void* stream_) {
    Guard guard(state().lock);
    Stream* stream = (Stream*)stream_;
    Event* event = (Event*)event_;
    Card* card = &state().cards[stream->card];
    event->recording = stream->recording;
    event->after = stream->last;
    event->reached = false;
    if (!stream->recording)
        push(stream, [=] { event->reached = true, event->at_us = card->clock_us; });
    return SUCCESS;
}

API Result cuStreamWaitEvent(void* stream_, void* event_, unsigned) {
    Guard guard(state().lock);
    Stream* stream = (Stream*)stream_;
    Event* event = (Event*)event_;
    // Only what Tessera asks for: streams meet in recordings alone.
    if (!event->recording || (stream->recording && stream->recording != event->recording))
        return INVALID_VALUE;
    if (!stream->recording) {
        stream->recording = event->recording;
        stream->last.clear();
        event->recording->others.push_back(stream);
    }
    stream->last.insert(stream->last.end(), event->after.begin(), event->after.end());
    return SUCCESS;
}

API Result cuEventElapsedTime(float* milliseconds, void* start_, void* end_) {
    Guard guard(state().lock);
    Event *start = (Event*)start_, *end = (Event*)end_;
    if (!start->timed || !end->timed || start->recording || end->recording) return INVALID_VALUE;
    if (!start->reached || !end->reached) return NOT_READY;
    return *milliseconds = (float)(end->at_us - start->at_us) / 1000, SUCCESS;
}

API Result cuGraphInstantiateWithFlags(void** exec, void* graph, unsigned long long) {
    return *exec = new Graph(*(Graph*)graph), SUCCESS;
}
API Result cuGraphDestroy(void* graph) { return delete (Graph*)graph, SUCCESS; }
API Result cuGraphExecDestroy(void* exec) { return delete (Graph*)exec, SUCCESS; }
API Result cuGraphLaunch(void* exec, void* stream_) {
    Guard guard(state().lock);
    Stream* stream = (Stream*)stream_;
    Card& card = state().cards[stream->card];
    if (card.lost) return ILLEGAL_ADDRESS;
    card.calls++;
    if (card.refuse_in >= 0 && card.refuse_in-- == 0) return OUT_OF_RESOURCES;
    if (card.break_in >= 0 && card.break_in-- == 0) push(stream, [&card] { card.lost = true; });
    const Graph& graph = *(Graph*)exec;
    bool beside = graph.has_side();
    card.replays++;
    card.beside_replays += beside;
    for (size_t i : graph.order(card.beside_replays % 2 == 1)) push(stream, graph.nodes[i].work);
    push(stream, [=, &card] { card.clock_us += beside ? card.beside_us : card.inline_us; });
    return SUCCESS;
}

API Result cuGetErrorName(Result code, const char** name) {
    static const std::map<Result, const char*> names = {
        {SUCCESS, "CUDA_SUCCESS"},
        {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},
        {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
        {NO_DEVICE, "CUDA_ERROR_NO_DEVICE"},
        {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE"},
        {UNSUPPORTED_VERSION, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"},
        {NOT_FOUND, "CUDA_ERROR_NOT_FOUND"},
        {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS"},
        {OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"},
        {NOT_READY, "CUDA_ERROR_NOT_READY"},
        {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"},
        {CAPTURE_UNJOINED, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED"}};
    auto found = names.find(code);
    if (found == names.end()) return INVALID_VALUE;
    return *name = found->second, SUCCESS;
}
API Result cuGetErrorString(Result, const char** text) { return *text = "emulated", SUCCESS; }
