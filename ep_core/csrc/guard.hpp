// What every operation runs in: one user of the buffer at a time, and no further use after it fell out of step.
#pragma once

#include <stdexcept>

#include "world.hpp"

namespace ep_core {

// A call out of order. Becomes RuntimeError; the buffer stays usable.
class Misuse : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Runs `operation`. After a wrong argument or a call out of order ranks still agree on what was done; after a timeout,
// an interrupt or any other failure they do not, and the buffer refuses to go on.
template <class Operation>
auto guarded(World& world, const Operation& operation) {
  const World::Use use(world);
  try {
    return operation();
  } catch (const WrongArgument&) {
    throw;
  } catch (const Misuse&) {
    throw;
  } catch (const PeersMissing&) {
    world.set_broken("an earlier operation timed out");
    throw;
  } catch (...) {
    world.set_broken("an earlier operation was interrupted");
    throw;
  }
}

}  // namespace ep_core
