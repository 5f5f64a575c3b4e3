Feature: Backpressure
  A queue has an end. Who finds it full is told at once how long to wait, and nothing that was accepted suffers from it.

  Scenario: A full queue refuses, and says for how long
    Given a server with 1 slot whose queue takes 2 tasks
    And "long" occupies its slot
    And "one" and "two" wait
    When the client submits "three" of 5 tokens
    Then it is refused with 429 "ADMISSION_REJECT"
    And the refusal is retriable, says how long to wait, and what to do
    And "one" and "two" wait

  Scenario: When there is room again the same request is accepted
    Given a server with 1 slot whose queue takes 2 tasks
    And "long" occupies its slot
    And "one" and "two" wait
    When the client cancels "one"
    And the client submits "three" of 5 tokens
    Then "three" was accepted with 1 task before it
    When the client cancels "long"
    Then "two" and "three" complete in this order

  Scenario: Interactive tasks start before batch tasks that came earlier
    Given a server with 1 slot whose queue takes 9 tasks
    And "long" occupies its slot
    And the client submitted "batch" of 5 tokens as batch
    And the client submitted "question" of 5 tokens
    When the client cancels "long"
    Then "question" and "batch" complete in this order

  Scenario: Where the operator prefers it, the oldest batch task makes room
    Given a server with 1 slot whose queue takes 1 task and drops the oldest batch task
    And "long" occupies its slot
    And the client submitted "batch" of 5 tokens as batch
    When the client submits "question" of 5 tokens
    Then "question" was accepted with 0 tasks before it
    And "batch" has failed with "QUEUE_FULL_DROP_LRU", and may be sent again
