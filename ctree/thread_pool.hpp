// Threads that live as long as the tree and divide its roots among themselves.
#pragma once

#include <unistd.h>

#include <condition_variable>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace efficientzero {

class ThreadPool {
 public:
  using Task = std::function<void(int begin, int end, int worker)>;

  explicit ThreadPool(int num_threads) : owner_(getpid()) {
    try {
      for (int worker = 1; worker < num_threads; ++worker) threads_.emplace_back([this, worker] { work(worker); });
    } catch (const std::system_error&) {
      // The system allows no more threads: the existing ones share the work.
    }
    num_threads_ = static_cast<int>(threads_.size()) + 1;
  }

  ~ThreadPool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    start_.notify_all();
    for (auto& thread : threads_) thread.join();
  }

  // False in a child of fork(), which lacks these threads: waiting for them, even to destroy the pool, would hang.
  bool has_threads() const { return getpid() == owner_; }

  // Calls task on equal shares of [0, count), one of them on the calling thread, and returns when all are done.
  void run(int count, const Task& task) {
    if (!has_threads()) return task(0, count, 0);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      task_ = &task;
      count_ = count;
      running_ = num_threads_ - 1;
      ++round_;
    }
    start_.notify_all();
    task(0, share(1), 0);
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return running_ == 0; });
  }

 private:
  int share(int worker) const { return static_cast<int>(static_cast<int64_t>(count_) * worker / num_threads_); }

  void work(int worker) {
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      start_.wait(lock, [&] { return stopping_ || round_ != seen; });
      if (stopping_) return;
      seen = round_;
      const Task& task = *task_;
      const int begin = share(worker), end = share(worker + 1);
      lock.unlock();
      task(begin, end, worker);
      lock.lock();
      if (--running_ == 0) done_.notify_one();
    }
  }

  const pid_t owner_;
  int num_threads_ = 1;  // including the calling thread
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable start_, done_;
  const Task* task_ = nullptr;
  int count_ = 0, running_ = 0;
  uint64_t round_ = 0;
  bool stopping_ = false;
};

}  // namespace efficientzero
