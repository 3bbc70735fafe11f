#include "segment.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <system_error>

namespace ep_core {
namespace {

[[noreturn]] void fail(const std::string& what) { throw std::system_error(errno, std::generic_category(), what); }

}  // namespace

void Descriptor::reset() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

Mapping::Mapping(const Descriptor& fd, std::size_t bytes) : bytes_(bytes) {
  void* address = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd.get(), 0);
  if (address == MAP_FAILED) fail("cannot map a segment of " + std::to_string(bytes) + " bytes");
  data_ = static_cast<std::byte*>(address);
}

Mapping::~Mapping() { ::munmap(data_, bytes_); }

Descriptor create_memfd(std::size_t bytes) {
  Descriptor fd(::memfd_create("ep_core", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) fail("cannot create a memfd");
  if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) {
    fail("cannot size a memfd to " + std::to_string(bytes) + " bytes");
  }
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) fail("cannot seal a memfd");
  return fd;
}

Descriptor open_peer_memfd(int pid, int fd) {
  const std::string path = "/proc/" + std::to_string(pid) + "/fd/" + std::to_string(fd);
  Descriptor peer(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (!peer.valid()) fail("cannot open " + path);
  return peer;
}

std::size_t file_bytes(const Descriptor& fd) {
  struct stat status{};
  if (::fstat(fd.get(), &status) != 0) fail("cannot read the size of a segment");
  return static_cast<std::size_t>(status.st_size);
}

}  // namespace ep_core
