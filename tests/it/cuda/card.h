// Emulated cards and their work, as driver.cpp and libraries.cpp share them.
#pragma once

#include <stdlib.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

typedef int Result;
typedef unsigned long long Address;

namespace emulated {

const Result SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100,
             INVALID_IMAGE = 200, UNSUPPORTED_VERSION = 222, NOT_FOUND = 500,
             ILLEGAL_ADDRESS = 700, OUT_OF_RESOURCES = 701,
             NOT_READY = 600, CAPTURE_UNSUPPORTED = 900, CAPTURE_UNJOINED = 904;
const size_t CANARY_BYTES = 256;
const int CARDS = 64;

struct Allocation {
    unsigned char* start;
    size_t bytes;
};

struct Card {
    size_t memory = 4ull << 30, used = 0;
    int driver = 13000, major = 9, minor = 0;
    // Launches until one fails: below 0, none does.
    long refuse_in = -1, break_in = -1, refuse_copies = 0, refuse_capture = 0;
    long calls = 0, launches = 0, replays = 0, beside_replays = 0, waits = 0;
    // Each kernel takes a microsecond; a recorded step these more, without and with work beside its
    // main stream.
    long inline_us = 0, beside_us = 0, clock_us = 0;
    bool lost = false;
    std::map<Address, Allocation> memories, pinned;
};

struct State {
    std::recursive_mutex lock;
    Card cards[CARDS];
    int count = 1;
    // All that products were allowed, as cuBLASLt numbers them.
    unsigned reduction_schemes = 0;
    State() {
        const char* count_text = getenv("TESSERA_EMULATE_CARDS");
        if (count_text) count = atoi(count_text);
        const char* memory = getenv("TESSERA_EMULATE_MEMORY");
        const char* driver = getenv("TESSERA_EMULATE_DRIVER");
        const char* capability = getenv("TESSERA_EMULATE_CAPABILITY");
        const char* broken = getenv("TESSERA_EMULATE_BREAK_IN");
        const char* refused = getenv("TESSERA_EMULATE_REFUSE_IN");
        for (Card& card : cards) {
            if (memory) card.memory = strtoull(memory, nullptr, 10);
            if (driver) card.driver = atoi(driver);
            if (capability) card.major = atoi(capability) / 10, card.minor = atoi(capability) % 10;
            if (broken) card.break_in = atol(broken);
            if (refused) card.refuse_in = atol(refused);
        }
    }
};

inline State& state() {
    static State* one = new State();
    return *one;
}

typedef std::lock_guard<std::recursive_mutex> Guard;

inline thread_local int current = -1;

struct Stream;

struct Node {
    std::function<void()> work;
    // Earlier nodes that it needs.
    std::vector<size_t> after;
    bool side;
};

struct Graph {
    Stream* origin;
    std::vector<Node> nodes;
    std::vector<Stream*> others;

    bool has_side() const {
        for (const Node& node : nodes)
            if (node.side) return true;
        return false;
    }

    void visit(size_t i, std::vector<bool>& done, std::vector<size_t>& order) const {
        if (done[i]) return;
        done[i] = true;
        for (size_t before : nodes[i].after) visit(before, done, order);
        order.push_back(i);
    }

    // The main stream's nodes in their order; a side's as early or as late as their needs allow.
    std::vector<size_t> order(bool late) const {
        std::vector<bool> done(nodes.size());
        std::vector<size_t> order;
        for (size_t i = 0; i < nodes.size(); i++) {
            if (!nodes[i].side) visit(i, done, order);
            for (size_t j = 0; j < nodes.size() && !late; j++) {
                bool ready = nodes[j].side && !done[j];
                for (size_t before : nodes[j].after) ready = ready && done[before];
                if (ready) visit(j, done, order);
            }
        }
        return order;
    }
};

struct Stream {
    int card;
    std::vector<std::function<void()>> queue;
    Graph* recording = nullptr;
    // What its next node comes after.
    std::vector<size_t> last;
};

struct Event {
    bool timed = true;
    // Of a recording: the nodes it stands for.
    Graph* recording = nullptr;
    std::vector<size_t> after;
    bool reached = false;
    long at_us = 0;
};

struct Module {
    void* library;
    std::string path;
};

typedef const char* (*Entry)(const unsigned*, size_t, const void*, bool);

struct Function {
    std::string name;
    Entry entry;
    size_t args_bytes;
    size_t shared_max = 48 << 10;
};

inline void push(Stream* stream, std::function<void()> work) {
    if (!stream->recording) return stream->queue.push_back(std::move(work));
    std::vector<Node>& nodes = stream->recording->nodes;
    nodes.push_back({std::move(work), stream->last, stream != stream->recording->origin});
    stream->last = {nodes.size() - 1};
}

inline void check_canaries(const Allocation& a) {
    for (size_t i = 0; i < CANARY_BYTES; i++)
        if (a.start[i] != 0xa5 || a.start[CANARY_BYTES + a.bytes + i] != 0xa5) {
            fprintf(stderr, "emulated card: memory beside an allocation of %zu bytes is written\n",
                    a.bytes);
            abort();
        }
}

}  // namespace emulated

using namespace emulated;
