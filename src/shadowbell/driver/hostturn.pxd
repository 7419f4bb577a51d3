from shadowbell.driver.hostload cimport Load
from shadowbell.driver.verifier cimport Verifier

cdef void turn(Load *load, Verifier check) noexcept nogil
