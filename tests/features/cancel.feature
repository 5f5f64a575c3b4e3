Feature: Cancel
  A cancel is a fact in the task's own stream: no token comes after it, for no reader, and it can be said as often as one likes.

  Background:
    Given a server with 1 slot

  Scenario: A running task says nothing after its cancel
    Given "long" occupies its slot
    When the client cancels "long"
    And it follows "long" to its end
    Then the one end of "long" is "cancelled"
    And all readers of "long" see the same tokens

  Scenario: The slot of a cancelled task is free for the next
    Given "long" occupies its slot
    And the client submitted "next" of 5 tokens
    When the client cancels "long"
    Then "next" completes with 5 tokens

  Scenario: A waiting task that is cancelled never starts
    Given "long" occupies its slot
    And the client submitted "next" of 5 tokens
    When the client cancels "next"
    Then "next" is cancelled and was never started

  Scenario: Cancelling twice, or what has ended, changes nothing
    Given "poem" of 5 tokens has ended
    When the client cancels "poem"
    And the client cancels "poem"
    Then "poem" completes with 5 tokens

  Scenario: What is not there cannot be cancelled
    When the client cancels a task that does not exist
    Then it is refused with 404 "NOT_FOUND"

  Scenario: Who may leave without a word takes the task along
    When the client submits "careless" that ends when nobody reads it
    And it leaves the stream of "careless" after a token
    Then "careless" is cancelled
